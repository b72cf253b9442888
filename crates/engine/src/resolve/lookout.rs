//! Where the context and the Dockerfile are in the files of a build, as asked for.
//!
//! Here are paths only; nothing is looked at.

use dockerfile::ignore;
use source::path::RelPath;

use super::context::{DOCKERFILE, Places, lower_case, own_ignore};
use crate::event::Failure;
use crate::failure::dockerfile as dockerfile_failure;

/// Where to look.
#[derive(Debug)]
pub(crate) struct Lookout {
    /// The folder that is the context.
    pub(crate) folder: RelPath,
    /// The Dockerfile; it may be in lower case.
    pub(crate) dockerfile: RelPath,
}

impl Lookout {
    /// Returns where to look for what `places` say, with the Dockerfile's `text` when it comes from elsewhere.
    pub(crate) fn of(text: Option<&str>, places: &Places<'_>) -> Result<Self, Failure> {
        let relative = |what: &str, path: &str| {
            let invalid = |e| dockerfile_failure(&format!("{what} {path:?}"), &e);
            RelPath::parse_in_workspace(path).map_err(invalid)
        };
        let dockerfile = places
            .dockerfile
            .map(|path| relative("Dockerfile path", path))
            .transpose()?;
        let folder = match (places.context_path, &dockerfile) {
            (Some(path), _) => relative("context path", path)?,
            (None, Some(path)) if text.is_none() => path.parent(),
            (None, _) => RelPath::default(),
        };
        let dockerfile = match dockerfile {
            Some(path) => path,
            None => folder.join(&relative("Dockerfile path", DOCKERFILE)?),
        };
        Ok(Self { folder, dockerfile })
    }

    /// Returns where to look in a context that has no Dockerfile.
    pub(crate) fn of_named(folder: &str) -> Result<Self, Failure> {
        let folder = RelPath::parse_in_workspace(folder)
            .map_err(|e| dockerfile_failure(&format!("folder {folder:?}"), &e))?;
        Ok(Self {
            folder,
            dockerfile: RelPath::default(),
        })
    }

    /// Returns every path at which something may be read before the first step.
    pub(crate) fn paths(&self) -> Vec<String> {
        let folder = self.folder.as_str();
        let mut paths = vec![
            match folder {
                "" => ignore::FILE_NAME.to_owned(),
                folder => format!("{folder}/{}", ignore::FILE_NAME),
            },
            folder.to_owned(),
        ];
        let dockerfile = self.dockerfile.as_str();
        let names = [Some(dockerfile.to_owned()), lower_case(dockerfile)];
        for name in names.into_iter().flatten() {
            paths.push(own_ignore(&name));
            paths.push(name);
        }
        paths.retain(|path| !path.is_empty());
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dockerfile: Option<&str>, context_path: Option<&str>) -> Vec<String> {
        let places = Places {
            dockerfile,
            context_path,
        };
        Lookout::of(None, &places).unwrap().paths()
    }

    #[test]
    fn everything_that_is_read_before_the_first_step_is_looked_for() {
        let plain = [
            ".dockerignore",
            "Dockerfile.dockerignore",
            "Dockerfile",
            "dockerfile.dockerignore",
            "dockerfile",
        ];
        assert_eq!(paths(None, None), plain);
        let apart = [
            "app/.dockerignore",
            "app",
            "docker/prod.dockerignore",
            "docker/prod",
        ];
        assert_eq!(paths(Some("./docker/prod"), Some("app/")), apart);
    }
}
