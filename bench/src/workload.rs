//! What is built, and how one measurement goes.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::check::{self, Expected};
use crate::context;
use crate::peer::{Job, Peer, Timed};
use crate::report::Row;

/// One thing to build.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) id: &'static str,
    /// In a few words.
    pub(crate) what: &'static str,
    /// The base image.
    pub(crate) base: &'static str,
    dockerfile: Dockerfile,
    files: Files,
    state: State,
    /// Highest ratio to `BuildKit` that is aimed at.
    pub(crate) goal: f64,
    /// What the image has to be.
    expected: Expected,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
enum Dockerfile {
    /// A text in which `BASE` stands for the base image.
    Text(&'static str),
    /// That many RUNs which write a few bytes each.
    Runs(usize),
}

/// What lies beside the Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    None,
    Many,
    One,
}

/// What the builder knows when the clock starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing at all.
    Cold,
    /// The same build was done before.
    Warm,
    /// The same build was done before, and then one file was changed.
    Changed,
}

const COLD: Expected = Expected {
    layers_above_base: 1,
    has: "",
};

/// All that several builders can be compared in.
pub(crate) const ALL: &[Workload] = &[
    Workload {
        id: "W1",
        what: "one trivial RUN on a 700 MB base of one layer, cold",
        base: "ws",
        dockerfile: Dockerfile::Text("FROM BASE\nRUN touch /built\nENV A=b\n"),
        files: Files::None,
        state: State::Cold,
        goal: 0.40,
        expected: Expected {
            has: "built",
            ..COLD
        },
    },
    Workload {
        id: "W1m",
        what: "the same base in six layers, cold",
        base: "ws6",
        dockerfile: Dockerfile::Text("FROM BASE\nRUN touch /built\nENV A=b\n"),
        files: Files::None,
        state: State::Cold,
        goal: 0.33,
        expected: Expected {
            has: "built",
            ..COLD
        },
    },
    Workload {
        id: "W2",
        what: "COPY of 40 000 small files and a RUN, cold",
        base: "debian",
        dockerfile: Dockerfile::Text("FROM BASE\nCOPY . /app/\nRUN ls /app/src > /listed\n"),
        files: Files::Many,
        state: State::Cold,
        goal: 0.33,
        expected: Expected {
            layers_above_base: 2,
            has: "app/src/module199/file39999.txt",
        },
    },
    Workload {
        id: "W3",
        what: "RUN that makes a layer of 600 MB, cold",
        base: "ws",
        dockerfile: Dockerfile::Text("FROM BASE\nRUN cp -a /usr /usr2\n"),
        files: Files::None,
        state: State::Cold,
        goal: 0.30,
        expected: Expected {
            has: "usr2/bin/git",
            ..COLD
        },
    },
    Workload {
        id: "W4",
        what: "W2 again, nothing changed",
        base: "debian",
        dockerfile: Dockerfile::Text("FROM BASE\nCOPY . /app/\nRUN ls /app/src > /listed\n"),
        files: Files::Many,
        state: State::Warm,
        goal: 0.25,
        expected: Expected {
            layers_above_base: 2,
            has: "listed",
        },
    },
    Workload {
        id: "W5",
        what: "four stages of two seconds each, joined, cold",
        base: "debian",
        dockerfile: Dockerfile::Text(
            "FROM BASE AS a\nRUN sleep 2; echo a > /a\nFROM BASE AS b\nRUN sleep 2; echo b > /b\nFROM BASE AS c\nRUN sleep 2; echo c > /c\nFROM BASE AS d\nRUN sleep 2; echo d > /d\nFROM BASE\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=c /c /\nCOPY --from=d /d /\n",
        ),
        files: Files::None,
        state: State::Cold,
        goal: 0.50,
        expected: Expected {
            layers_above_base: 4,
            has: "d",
        },
    },
    Workload {
        id: "W6",
        what: "thirty trivial RUNs, cold",
        base: "debian",
        dockerfile: Dockerfile::Runs(30),
        files: Files::None,
        state: State::Cold,
        goal: 0.25,
        expected: Expected {
            layers_above_base: 30,
            has: "n29",
        },
    },
    Workload {
        id: "W7",
        what: "W2 with one file changed",
        base: "debian",
        dockerfile: Dockerfile::Text("FROM BASE\nCOPY . /app/\nRUN ls /app/src > /listed\n"),
        files: Files::Many,
        state: State::Changed,
        goal: 0.25,
        expected: Expected {
            layers_above_base: 2,
            has: "app/src/module100/file20000.txt",
        },
    },
    Workload {
        id: "W8",
        what: "COPY of one file onto a 700 MB base of the same registry, no RUN, cold",
        base: "ws",
        dockerfile: Dockerfile::Text("FROM BASE\nCOPY program /program\nCMD [\"/program\"]\n"),
        files: Files::One,
        state: State::Cold,
        goal: 0.05,
        expected: Expected {
            has: "program",
            ..COLD
        },
    },
];

/// What all measurements share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) registry: String,
    pub(crate) scratch: PathBuf,
    pub(crate) rounds: usize,
}

impl Bench {
    /// Builds `workload` with every peer, in turn, round after round.
    pub(crate) fn measure(&self, workload: &Workload, peers: &mut [Peer]) -> Result<Row> {
        let folder = self.scratch.join("context");
        crate::peer::remove_tree(&folder);
        self.write(workload, &folder)?;
        let mut row = Row::new(workload.id, workload.what, workload.goal);
        for round in 0..self.rounds {
            for peer in peers.iter_mut() {
                let timed = self.once(workload, &folder, peer, round)?;
                eprint(&format!(
                    "{} round {} {:10} {:8.3} s  {:7.2} s of CPU  {:6.1} MB",
                    workload.id,
                    round + 1,
                    peer.name(),
                    timed.seconds,
                    timed.cpu_seconds,
                    megabytes(timed.image_bytes)
                ));
                row.add(peer.name(), timed);
            }
        }
        Ok(row)
    }

    fn once(
        &self,
        workload: &Workload,
        folder: &Path,
        peer: &mut Peer,
        round: usize,
    ) -> Result<Timed> {
        let builder = peer.name();
        let name = |what: &str| {
            let id = workload.id.to_lowercase();
            format!(
                "{}/bench/{id}-{builder}-{round}-{what}:latest",
                self.registry
            )
        };
        peer.forget()?;
        if workload.state != State::Cold {
            let warm_up = Job {
                folder,
                reference: &name("before"),
            };
            peer.build(&warm_up)?;
        }
        if workload.state == State::Changed {
            context::change_one(folder)?;
        }
        let reference = match workload.state {
            // The same build again: also to the same name.
            State::Warm => name("before"),
            State::Cold | State::Changed => name("image"),
        };
        let mut timed = peer.build(&Job {
            folder,
            reference: &reference,
        })?;
        timed.image_bytes =
            check::image(&reference, &workload.expected, self.base_layers(workload)?)?;
        ensure!(timed.image_bytes > 0, "{reference} is empty");
        Ok(timed)
    }

    fn base_layers(&self, workload: &Workload) -> Result<usize> {
        check::n_layers(&format!("{}/{}:latest", self.registry, workload.base))
    }

    fn write(&self, workload: &Workload, folder: &Path) -> Result<()> {
        let base = format!("{}/{}:latest", self.registry, workload.base);
        let text = match workload.dockerfile {
            Dockerfile::Text(text) => text.replace("BASE", &base),
            Dockerfile::Runs(n) => (0..n).fold(format!("FROM {base}\n"), |text, n| {
                text + &format!("RUN echo {n} > /n{n}\n")
            }),
        };
        context::plain(folder, &text)?;
        match workload.files {
            Files::None => Ok(()),
            Files::Many => context::many_files(folder),
            Files::One => context::one_file(folder),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes are shown with three digits"
)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Says how far it is.
#[expect(
    clippy::print_stderr,
    reason = "talk, beside the results on standard output"
)]
pub(crate) fn eprint(line: &str) {
    eprintln!("{line}");
}
