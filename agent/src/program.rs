//! Programs of this host that are run and listened to.
//!
//! No shell: each argument is one word. Messages are not translated (`LC_ALL=C`), stdin is empty, and time and output have bounds. A program that changes
//! something is asked to end when its time is up, and not killed: a volume manager that is killed in the middle leaves devices suspended.

use std::io::{BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landfall_model::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// A program that answers a question, or changes one thing.
const SHORT_MAX: Duration = Duration::from_secs(30);
/// One that tells what changed on a whole disk.
const LONG_MAX: Duration = Duration::from_secs(6 * 3600);
/// Of an answer that is kept whole.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// Kept of what a program says of its failure.
const SAID_BYTES_MAX: u64 = 400;
/// After it has ended, for the last of what it wrote.
const LAST_WORD_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
/// Beside `PATH`, which has no such folders for an ordinary user.
const FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Where a program is; `None`: nowhere.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    // What is in an unnamed folder is anybody's.
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// All of these programs, or which is missing and what to install.
///
/// # Errors
/// `Unsupported`.
pub(crate) fn need(programs: &[(&str, &str)]) -> Result<()> {
    match programs.iter().find(|(name, _)| find(name).is_none()) {
        Some((name, package)) => {
            Err(Error::new(ErrorKind::Unsupported, format!("{name} was not found (install {package})")))
        }
        None => Ok(()),
    }
}

/// What a program prints, which may change something.
///
/// # Errors
/// `Unavailable` where it fails, says too much or takes too long; `Unsupported` where it is not there.
pub(crate) fn output(words: &[&str]) -> Result<String> {
    let hear = |from: BufReader<ChildStdout>| {
        let mut text = String::new();
        let read = from.take(OUTPUT_BYTES_MAX).read_to_string(&mut text);
        match read {
            Ok(_) if text.len() as u64 >= OUTPUT_BYTES_MAX => Err(failed("an answer", "it is too long")),
            Ok(_) => Ok(text),
            Err(error) => Err(failed("an answer", error)),
        }
    };
    run(&[words], SHORT_MAX, Signal::TERM, &|| false, hear)
}

/// Gives what the last of these programs prints to `hear`; each reads what the one before prints. They change nothing, and are killed where `stop` says so.
///
/// # Errors
/// What `hear` says; else as for [`output`].
pub(crate) fn listen<T: Send + 'static>(
    programs: &[&[&str]],
    stop: &dyn Fn() -> bool,
    hear: impl FnOnce(BufReader<ChildStdout>) -> Result<T> + Send + 'static,
) -> Result<T> {
    run(programs, LONG_MAX, Signal::KILL, stop, hear)
}

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what}: {why}"))
}

/// A program that runs. One that nobody waits for any more is asked to end.
struct Running {
    /// Its name and first arguments, for errors.
    what: String,
    child: Child,
    said: Option<JoinHandle<String>>,
    status: Option<ExitStatus>,
    /// What ends it early.
    end: Signal,
}

impl Running {
    fn start(words: &[&str], stdin: Stdio, end: Signal) -> Result<Self> {
        let [name, arguments @ ..] = words else { return Err(Error::new(ErrorKind::Bug, "no program is named")) };
        let what = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        let path = find(name)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("the program {name} was not found")))?;
        let mut command = Command::new(path);
        command.args(arguments).env("LC_ALL", "C").stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What ends the agent's group does not end it in the middle.
        let mut child = command.process_group(0).spawn().map_err(|e| failed(&what, e))?;
        let said = child.stderr.take().map(|stderr| std::thread::spawn(move || first_words(stderr)));
        Ok(Self { what, child, said, status: None, end })
    }

    fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            // Where that cannot be asked, the time limit ends it.
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_some()
    }

    fn outcome(&mut self) -> Result<()> {
        let status = self.status.ok_or_else(|| failed(&self.what, "it has not ended"))?;
        if status.success() {
            return Ok(());
        }
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        Err(failed(&self.what, if said.is_empty() { status.to_string() } else { said }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_ended() {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, self.end);
        }
        // It may be in the kernel, behind a freeze: whoever waits here would not thaw.
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(POLL);
        }
    }
}

fn run<T: Send + 'static>(
    programs: &[&[&str]],
    longest: Duration,
    end: Signal,
    stop: &dyn Fn() -> bool,
    hear: impl FnOnce(BufReader<ChildStdout>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let start = Instant::now();
    let mut running: Vec<Running> = Vec::with_capacity(programs.len());
    let mut stdin = Stdio::null();
    let mut last = None;
    for (n, words) in programs.iter().enumerate() {
        let mut program = Running::start(words, stdin, end)?;
        let stdout = program.child.stdout.take();
        stdin = Stdio::null();
        if n + 1 == programs.len() {
            last = stdout;
        } else if let Some(stdout) = stdout {
            stdin = stdout.into();
        }
        running.push(program);
    }
    let stdout = last.ok_or_else(|| Error::new(ErrorKind::Bug, "a program without output"))?;
    let (out, heard) = sync_channel(1);
    std::thread::spawn(move || {
        // Who asked may have given up.
        let _ = out.send(hear(BufReader::new(stdout)));
    });
    let what = || programs.iter().filter_map(|words| words.first().copied()).collect::<Vec<_>>().join(" | ");
    while !running.iter_mut().all(Running::has_ended) {
        if start.elapsed() >= longest {
            return Err(failed(&what(), format_args!("it did not end within {} s", longest.as_secs())));
        }
        if stop() {
            return Err(failed(&what(), "it was stopped before it ended"));
        }
        std::thread::sleep(POLL);
    }
    let heard = last_word(&heard, &what());
    // The first that failed is why the others did; but one who stops reading makes those before it fail.
    let outcome = running.iter_mut().map(Running::outcome).collect::<Result<Vec<()>>>();
    match (heard, outcome) {
        (Ok(heard), Ok(_)) => Ok(heard),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), Ok(_)) => Err(error),
        (Err(heard), Err(error)) => Err(heard.context(error)),
    }
}

fn last_word<T>(heard: &Receiver<Result<T>>, what: &str) -> Result<T> {
    heard.recv_timeout(LAST_WORD_WAIT).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => failed(what, "it has ended, and its output has not"),
            RecvTimeoutError::Disconnected => Error::new(ErrorKind::Bug, "who listened to a program died"),
        })
    })
}

/// The beginning of a text as one line; the rest is read, so that nobody waits, and thrown away.
fn first_words(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.by_ref().take(SAID_BYTES_MAX).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    let text = String::from_utf8_lossy(&bytes);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    #[test]
    fn a_program_is_heard_and_its_failure_is_told_in_one_line() {
        assert_eq!(output(&["echo", "-n", "$HOME; `id`"]).expect("echo"), "$HOME; `id`");
        let error = output(&["sh", "-c", "printf 'one\\n\\033two\\n' >&2; exit 3"]).expect_err("a failure");
        assert_eq!(error.line(), "sh -c: one two");
        let error = output(&["sh", "-c", "exit 3"]).expect_err("a failure");
        assert!(error.line().contains("exit status: 3"), "{error}");
        assert_eq!(output(&["no-such-program"]).expect_err("missing").kind(), ErrorKind::Unsupported);
        let need = need(&[("sh", "dash"), ("no-such-program", "a package")]).expect_err("missing");
        assert_eq!(need.line(), "no-such-program was not found (install a package)");
    }

    #[test]
    fn too_much_is_no_answer() {
        let error = output(&["head", "-c", "9000000", "/dev/zero"]).expect_err("too long");
        assert!(error.line().contains("too long"), "{error}");
    }

    #[test]
    fn one_reads_what_the_other_prints_and_the_first_failure_is_told() {
        let lines = |from: BufReader<ChildStdout>| Ok(from.lines().map_while(std::io::Result::ok).count());
        let none = || false;
        assert_eq!(listen(&[&["seq", "5000"], &["grep", "1"]], &none, lines).expect("heard"), 2084);
        let error =
            listen(&[&["sh", "-c", "echo a; echo no >&2; exit 1"], &["cat"]], &none, lines).expect_err("failed");
        assert_eq!(error.line(), "sh -c: no");
        let refuse = |_| Err::<(), _>(Error::corrupt("not understood"));
        let error = listen(&[&["seq", "1000000"]], &none, refuse).expect_err("refused");
        assert!(error.line().contains("not understood"), "{error}");
        let start = Instant::now();
        listen(&[&["sleep", "600"], &["cat"]], &|| true, lines).expect_err("stopped");
        assert!(start.elapsed() < Duration::from_secs(300), "it was not waited for");
    }
}
