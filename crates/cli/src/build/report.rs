//! What is left to say once a build has ended: files for scripts, and words for people.

use std::io::Write;

use engine::event::{BuiltImage, Failure as BuildFailure};
use engine::id::BuildId;
use engine::state::BuildState;
use serde_json::json;

use super::outputs::write_file;
use crate::args::BuildArgs;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::progress::Style;
use crate::progress::clean::{Colours, clean};
use crate::terminal;

/// Returns the image of a build that ended well, or how the program ends.
pub(crate) fn image(state: BuildState, style: Style) -> Outcome<BuiltImage> {
    match state {
        BuildState::Succeeded { image } => Ok(image),
        BuildState::Failed { failure } => Err(failed(&failure, style)),
        BuildState::Cancelled => Err(Failure::text(Exit::Interrupted, "the build was cancelled")),
        BuildState::Queued { .. } | BuildState::Active { .. } => Err(Failure::text(
            Exit::Internal,
            "the build's journal has no end",
        )),
    }
}

fn failed(failure: &BuildFailure, style: Style) -> Failure {
    let exit = Exit::of_build(failure.kind);
    if style.shows_failures() {
        return Failure::silent(exit);
    }
    let message = clean(failure.message.as_bytes(), Colours::Drop);
    Failure::text(exit, format!("build failed: {message}"))
}

/// Writes the files that were asked for, and tells the user what was built.
pub(crate) fn tell(args: &BuildArgs, id: &BuildId, image: &BuiltImage, style: Style) -> Outcome {
    if let Some(path) = &args.iidfile {
        write_file(path, |file| write!(file, "{}", image.config_digest)).or_exit(Exit::Machine)?;
    }
    if let Some(path) = &args.metadata_file {
        let text = format!("{:#}\n", metadata(id, image));
        write_file(path, |file| file.write_all(text.as_bytes())).or_exit(Exit::Machine)?;
    }
    match style {
        Style::Quiet => terminal::data(&image.digest.to_string()).or_exit(Exit::Machine)?,
        Style::Tty(_) => {
            terminal::say(&format!("image {}", image.digest));
            for reference in &image.references {
                terminal::say(&format!("  is  {reference}"));
            }
        }
        Style::Plain | Style::PlainTerminal(_) | Style::Rawjson => {}
    }
    Ok(())
}

/// Keys as docker buildx writes them, and ours.
fn metadata(id: &BuildId, image: &BuiltImage) -> serde_json::Value {
    let names: Vec<String> = image.references.iter().map(ToString::to_string).collect();
    json!({
        "containerimage.config.digest": image.config_digest,
        "containerimage.digest": image.digest,
        "image.name": names.join(","),
        "kiln.build.id": id,
        "kiln.steps.cached": image.n_cached,
        "kiln.steps.run": image.n_run,
    })
}
