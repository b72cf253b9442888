//! `--secret`: values from files and from the environment. They go into the spec, and from there only to steps that ask for them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context as _;
use engine::sandbox::SecretBytes;

use crate::args::steps::{SecretArg, SecretFrom};
use crate::environment;
use crate::failure::{Exit, Failure, OrExit, Outcome};

/// Largest secret, as with docker.
const SECRET_MAX_BYTES: u64 = 500 << 10;

/// Returns the secrets by their ids.
pub(crate) fn read(args: &[SecretArg]) -> Outcome<BTreeMap<String, SecretBytes>> {
    let mut secrets = BTreeMap::new();
    for arg in args {
        let value = match &arg.from {
            SecretFrom::File(path) => of_file(&arg.id, path)?,
            SecretFrom::Variable(name) => {
                let missing = || {
                    let text = format!("secret {:?}: there is no variable {name}", arg.id);
                    Failure::text(Exit::Usage, text)
                };
                environment::variable(name)
                    .ok_or_else(missing)?
                    .into_bytes()
            }
            SecretFrom::Either => match environment::variable(&arg.id) {
                Some(value) => value.into_bytes(),
                None => of_file(&arg.id, Path::new(&arg.id))?,
            },
        };
        if value.len() as u64 > SECRET_MAX_BYTES {
            let text = format!("secret {:?} has more than {SECRET_MAX_BYTES} bytes", arg.id);
            return Err(Failure::text(Exit::Usage, text));
        }
        if secrets
            .insert(arg.id.clone(), SecretBytes::new(value))
            .is_some()
        {
            let text = format!("two secrets have the id {:?}", arg.id);
            return Err(Failure::text(Exit::Usage, text));
        }
    }
    Ok(secrets)
}

fn of_file(id: &str, path: &Path) -> Outcome<Vec<u8>> {
    let mut value = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(SECRET_MAX_BYTES + 1).read_to_end(&mut value));
    read.with_context(|| format!("secret {id:?}: read \"{}\"", path.display()))
        .or_exit(Exit::Usage)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_variable_of_its_name_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "hidden\n").unwrap();
        let arg = |text: &str| text.parse::<SecretArg>().unwrap();
        let of_file = arg(&format!("id=t,src={}", path.display()));
        let found = read(&[of_file.clone(), arg("id=PATH")]).unwrap();
        assert_eq!(found["t"].reveal(), b"hidden\n");
        assert!(!found["PATH"].reveal().is_empty());
        assert!(!format!("{found:?}").contains("hidden"));
        assert!(read(&[of_file.clone(), of_file]).is_err());
        assert!(read(&[arg("id=x,env=KILN_NO_SUCH_VARIABLE")]).is_err());
        assert!(read(&[arg("id=x,src=/nonexistent")]).is_err());
        std::fs::write(&path, vec![0; 600 << 10]).unwrap();
        assert!(read(&[arg(&format!("id=t,src={}", path.display()))]).is_err());
    }
}
