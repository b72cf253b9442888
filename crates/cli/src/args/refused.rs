//! Options of docker buildx for what kiln does not make: understood, and answered.

use clap::Args;

use crate::failure::{Exit, Failure, Outcome};

/// Options that are refused unless they ask for nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Not supported, for those who come from docker")]
pub(crate) struct RefusedArgs {
    /// A list of the packages in the image: only `false`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sbom: Option<String>,
    /// A statement of how the image was made: only `false`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    provenance: Option<String>,
    /// Statements about the image: none is made
    #[arg(long, value_name = "type=TYPE")]
    attest: Vec<String>,
    /// Load the image into a docker daemon
    #[arg(long)]
    load: bool,
}

impl RefusedArgs {
    /// Fails when something is asked for.
    pub(crate) fn check(&self) -> Outcome {
        let is_asked = |value: &Option<String>| {
            let value = value.as_deref();
            value.is_some_and(|value| !matches!(value, "false" | "0" | "disabled=true"))
        };
        let disabled = |text: &String| text.split(',').any(|field| field == "disabled=true");
        let refused = [
            (
                is_asked(&self.sbom),
                "--sbom: no list of packages is made",
                "run a scanner over the image: kiln build -o type=oci,dest=image.tar",
            ),
            (
                is_asked(&self.provenance),
                "--provenance: no statement of how an image was made is attached to it",
                "--metadata-file tells what was built from which bases",
            ),
            (
                !self.attest.iter().all(disabled),
                "--attest: no statements are attached to images",
                "leave it out",
            ),
            (
                self.load,
                "--load: there is no docker daemon to load the image into",
                "kiln build -t NAME -o type=docker,dest=- … | docker load",
            ),
        ];
        match refused.into_iter().find(|(is_asked, ..)| *is_asked) {
            Some((_, text, hint)) => Err(Failure::text(Exit::Usage, text).hint(hint)),
            None => Ok(()),
        }
    }
}
