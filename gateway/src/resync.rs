//! On one link: whether everything may be sent now.
//!
//! A first copy always may. A full comparison of a machine that has points waits for the resync window, where the rules have one, unless an
//! operator asks for it. What began in the window goes on after its end.

use std::sync::Arc;
use std::time::Duration;

use landfall_model::MachineName;
use landfall_vault::now;
use tokio::sync::watch;

use crate::registry::Registry;
use crate::rules::Rules;

/// How often a machine that waits is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is agreed with the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Agreed {
    Nothing,
    /// It is told to wait.
    Waits,
    /// It is told to send everything.
    Wanted,
}

/// What is agreed on a link about sending everything.
pub(crate) struct Resync<'a> {
    rules: watch::Receiver<Arc<Rules>>,
    registry: &'a Registry,
    machine: &'a MachineName,
    agreed: Agreed,
    /// What the agent that waits was told.
    told: Option<String>,
    /// Whether an operator had asked when the cycle began.
    asked: bool,
}

impl<'a> Resync<'a> {
    pub(crate) fn new(rules: watch::Receiver<Arc<Rules>>, registry: &'a Registry, machine: &'a MachineName) -> Self {
        Self { rules, registry, machine, agreed: Agreed::Nothing, told: None, asked: false }
    }

    /// Why everything must not be sent now. Agrees with it where it may.
    pub(crate) fn must_wait(&mut self, has_points: bool) -> Option<String> {
        let why = if has_points && self.agreed != Agreed::Wanted { self.until() } else { None };
        self.agreed = if why.is_some() { Agreed::Waits } else { Agreed::Wanted };
        self.told.clone_from(&why);
        why
    }

    fn until(&self) -> Option<String> {
        let opens = self.rules.borrow().resync_opens(now())?;
        let why = || format!("resync waits for {opens}; `landfall resync --machine {}` does not wait", self.machine);
        (!self.is_asked()).then(why)
    }

    /// Whether an operator asks for it.
    pub(crate) fn is_asked(&self) -> bool {
        self.registry.asks_resync(self.machine)
    }

    /// Whether the agent waits.
    pub(crate) fn waits(&self) -> bool {
        self.agreed == Agreed::Waits
    }

    /// Returns when a machine that waits need not wait any more, or waits for another hour.
    pub(crate) async fn until_changed(&mut self) {
        let told = self.told.clone();
        while self.must_wait(true) == told {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A cycle begins.
    pub(crate) fn begins(&mut self) {
        self.asked = self.is_asked();
    }

    /// A cycle with everything was taken: it is what an operator asked for before it began.
    pub(crate) fn done(&mut self) {
        self.agreed = Agreed::Nothing;
        if std::mem::take(&mut self.asked) {
            self.registry.resync_done(self.machine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GatewayConfig;
    use crate::schedule::Zone;

    fn rules(more: &str) -> Arc<Rules> {
        let text = format!("[gateway]\nvault = \"v\"\nsite_key = \"/k\"\nutc_offset = \"+00:00\"\n{more}");
        Arc::new(GatewayConfig::parse(&text, std::path::Path::new("g.toml")).expect("a configuration").rules)
    }

    /// A window that is shut now and for half a day.
    fn shut() -> Arc<Rules> {
        let noon_or_midnight =
            if Zone::Fixed(0).minute(now()).is_morning() { ("18:00", "19:00") } else { ("06:00", "07:00") };
        rules(&format!("[resync]\nhours = \"{}-{}\"\n", noon_or_midnight.0, noon_or_midnight.1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_comparison_waits_for_its_window_or_an_operator_and_a_first_copy_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::open(folder.path().to_owned()).expect("a registry");
        let machine: MachineName = "web".parse().expect("a name");
        let changes = watch::Sender::new(shut());
        let link = || Resync::new(changes.subscribe(), &registry, &machine);
        assert_eq!(link().must_wait(false), None, "a first copy");
        let mut waiting = link();
        let why = waiting.must_wait(true).expect("it waits");
        assert!(why.contains("resync waits for ") && why.contains("landfall resync --machine web"), "{why}");
        assert!(waiting.waits());

        registry.ask_resync(&machine).expect("asked");
        waiting.until_changed().await;
        assert!(!waiting.waits());
        // A cycle that fails does not use up what was asked for; one that is taken does.
        waiting.begins();
        assert_eq!(link().must_wait(true), None);
        waiting.done();
        assert!(link().must_wait(true).is_some());

        // What was agreed stays so when the window shuts.
        let mut other = link();
        assert!(other.must_wait(true).is_some());
        // Another hour is told; a window that opens ends the wait.
        let other_hour =
            Rules { zone: Zone::Fixed(0), resync: shut().resync.map(|w| w.a_minute_later()), ..Rules::default() };
        changes.send_replace(Arc::new(other_hour));
        other.until_changed().await;
        assert!(other.waits());
        changes.send_replace(rules("[resync]\nhours = \"00:00-24:00\"\n"));
        other.until_changed().await;
        assert!(!other.waits());
        changes.send_replace(shut());
        assert_eq!(other.must_wait(true), None);
        // Without a window nothing waits.
        changes.send_replace(rules(""));
        assert_eq!(link().must_wait(true), None);
        // What is asked for while a comparison is on its way is another one.
        let mut running = link();
        running.begins();
        registry.ask_resync(&machine).expect("asked");
        running.done();
        assert!(link().is_asked());
    }
}
