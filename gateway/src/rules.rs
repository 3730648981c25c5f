//! What an operator may change while a gateway runs: rates, and when they hold.
//!
//! ```toml
//! [gateway]
//! rate = "50MiB"                   # most bytes uploaded in a second; default: no limit
//! utc_offset = "+02:00"            # what hours are hours of; default: the time of this host
//!
//! [[window]]                       # other rates at certain hours; of several that hold, the first counts
//! days = "Mon-Fri"                 # on which it begins: "Mon-Fri", "Sat,Sun", "daily"; default: daily
//! hours = "08:00-18:00"            # may pass midnight; default: all day
//! rate = "5MiB"                    # or "unlimited"
//! machine = "web-01"               # what is received from this machine; default: what is uploaded
//!
//! [[machine]]
//! name = "web-01"
//! rate = "2MiB"                    # most bytes received from it in a second; default: no limit
//!
//! [resync]                         # when machines that have points may be compared in full; default: at any time
//! days = "Sat,Sun"
//! hours = "22:00-06:00"
//!
//! [[webhook]]                      # who is told when the health of a machine or of the spool changes
//! url = "https://hooks.site/landfall"
//! secret_file = "/etc/landfall/webhook.secret"   # notices are signed with it; default: they are not
//! ```

use std::collections::BTreeMap;

use landfall_model::{MachineName, Result, Timestamp};
use landfall_settings::{Source, Table, Value};

use crate::schedule::{Days, Hours, Schedule, WeekMinute, Window, Zone};
use crate::webhook::Webhook;

/// Sections of the configuration that are read here.
pub(crate) const SECTIONS: [&str; 4] = ["window", "machine", "resync", "webhook"];

/// Each has a task and a queue of its own.
const WEBHOOKS_MAX: usize = 16;

/// Bytes a second; `None`: no limit.
pub type BytesPerSecond = Option<u64>;

/// What may change while a gateway runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// What the hours of windows are hours of.
    pub zone: Zone,
    /// How fast is uploaded.
    pub uploads: Schedule<BytesPerSecond>,
    /// How fast is received, of machines that have a limit.
    pub machines: BTreeMap<MachineName, Schedule<BytesPerSecond>>,
    /// When machines that have points may be compared in full; at any time where it is `None`.
    pub resync: Option<Window>,
    /// Who is told of changes of health.
    pub webhooks: Vec<Webhook>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            zone: Zone::default(),
            uploads: Schedule::always(None),
            machines: BTreeMap::new(),
            resync: None,
            webhooks: Vec::new(),
        }
    }
}

impl Rules {
    /// Reads them from the root of a configuration and its section `[gateway]`.
    ///
    /// # Errors
    /// `Usage`, naming the line and what to do.
    pub(crate) fn read<'a>(root: &Table<'a>, gateway: &Table<'a>) -> Result<Self> {
        let source = root.source();
        let mut rules = Self {
            zone: gateway.optional("utc_offset")?.unwrap_or_default(),
            uploads: Schedule::always(rate(gateway)?.flatten()),
            machines: BTreeMap::new(),
            resync: root.get("resync").map(|value| resync(&source.table(value, "[resync]")?)).transpose()?,
            webhooks: Vec::new(),
        };
        for value in list(source, root.get("machine"), "machine is not a list: write [[machine]]")? {
            rules.machine(&source.table(value, "[[machine]]")?)?;
        }
        for value in list(source, root.get("window"), "window is not a list: write [[window]]")? {
            rules.window(&source.table(value, "[[window]]")?)?;
        }
        for value in list(source, root.get("webhook"), "webhook is not a list: write [[webhook]]")? {
            rules.webhook(&source.table(value, "[[webhook]]")?)?;
        }
        Ok(rules)
    }

    fn webhook(&mut self, table: &Table<'_>) -> Result<()> {
        table.only(&["url", "secret_file"])?;
        let url = table.parsed("url", "add url = \"https://...\"")?;
        let webhook = Webhook { url, secret_file: table.path("secret_file")? };
        if self.webhooks.iter().any(|w| w.url == webhook.url) {
            return Err(table.source().wrong(table.place(), "this webhook is named twice: give each once"));
        }
        if self.webhooks.len() == WEBHOOKS_MAX {
            return Err(table.source().wrong(table.place(), format_args!("there are at most {WEBHOOKS_MAX} webhooks")));
        }
        self.webhooks.push(webhook);
        Ok(())
    }

    fn machine(&mut self, table: &Table<'_>) -> Result<()> {
        table.only(&["name", "rate"])?;
        let name: MachineName = table.parsed("name", "add name = \"NAME\"")?;
        let schedule = Schedule::always(rate(table)?.flatten());
        if self.machines.insert(name.clone(), schedule).is_some() {
            let why = format!("machine {name} is named twice: give each machine once");
            return Err(table.source().wrong(table.place(), why));
        }
        Ok(())
    }

    fn window(&mut self, table: &Table<'_>) -> Result<()> {
        table.only(&["days", "hours", "rate", "machine"])?;
        table.required("rate", "add rate = \"5MiB\", or rate = \"unlimited\"")?;
        let (window, rate) = (window(table)?, rate(table)?.flatten());
        match table.optional("machine")? {
            Some(name) => self.machines.entry(name).or_insert_with(|| Schedule::always(None)).add(window, rate),
            None => self.uploads.add(window, rate),
        }
        Ok(())
    }

    /// When the resync window opens, where it is shut at a moment.
    pub(crate) fn resync_opens(&self, at: Timestamp) -> Option<WeekMinute> {
        let minute = self.zone.minute(at);
        self.resync.filter(|window| !window.holds(minute)).map(|window| window.opens_after(minute))
    }

    /// How fast is uploaded at a moment.
    pub(crate) fn upload_rate(&self, at: Timestamp) -> BytesPerSecond {
        self.uploads.at(self.zone.minute(at))
    }

    /// How fast is received from a machine at a moment.
    pub(crate) fn machine_rate(&self, machine: &MachineName, at: Timestamp) -> BytesPerSecond {
        self.machines.get(machine).and_then(|schedule| schedule.at(self.zone.minute(at)))
    }
}

fn resync(table: &Table<'_>) -> Result<Window> {
    table.only(&["days", "hours"])?;
    table.required("hours", "add hours = \"22:00-06:00\", or leave the section out")?;
    window(table)
}

/// The sections of a list; none where there is no list.
fn list<'a>(source: Source<'a>, value: Option<&'a Value<'a>>, wrong: &str) -> Result<Vec<&'a Value<'a>>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let list = value.get_ref().as_array().ok_or_else(|| source.wrong(value.span().start, wrong))?;
    Ok(list.iter().collect())
}

/// Days and hours of a section; what is not said is every day, all day.
fn window(table: &Table<'_>) -> Result<Window> {
    let days = table.optional("days")?.unwrap_or(Days::DAILY);
    Ok(Window { days, hours: table.optional("hours")?.unwrap_or(Hours::ALL) })
}

/// The rate of a section, if it says one.
fn rate(table: &Table<'_>) -> Result<Option<BytesPerSecond>> {
    match table.text("rate")? {
        Some((_, text)) if text == "unlimited" => Ok(Some(None)),
        _ => Ok(table.size("rate")?.map(Some)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GatewayConfig;

    fn parse(more: &str) -> Result<Rules> {
        let text = format!("[gateway]\nvault = \"v\"\nsite_key = \"/k\"\nutc_offset = \"+02:00\"\n{more}");
        GatewayConfig::parse(&text, std::path::Path::new("gateway.toml")).map(|config| config.rules)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn rates_follow_the_windows_of_the_week_by_the_clock_of_the_site() {
        let rules = parse(
            r#"
            rate = "50MiB"
            [[window]]
            days = "Mon-Fri"
            hours = "08:00-18:00"
            rate = "5MiB"
            [[window]]
            days = "Sun"
            rate = "unlimited"
            [[machine]]
            name = "web"
            rate = "2MiB"
            [[window]]
            machine = "web"
            hours = "22:00-06:00"
            rate = "9MiB"
            [[window]]
            machine = "db"
            days = "Sat"
            rate = "1MiB"
            "#,
        )
        .expect("rules");
        let mib = |n: u64| Some(n << 20);
        // 2026-11-20 is a Friday, and the site is two hours ahead of UTC.
        for (moment, wanted) in [
            ("2026-11-20T05:59:59Z", mib(50)),
            ("2026-11-20T06:00:00Z", mib(5)),
            ("2026-11-20T15:59:59Z", mib(5)),
            ("2026-11-20T16:00:00Z", mib(50)),
            ("2026-11-21T12:00:00Z", mib(50)),
            ("2026-11-21T22:00:00Z", None),
            ("2026-11-22T22:00:00Z", mib(50)),
        ] {
            assert_eq!(rules.upload_rate(at(moment)), wanted, "{moment}");
        }
        let of = |machine: &str, moment| rules.machine_rate(&machine.parse().expect("a name"), at(moment));
        assert_eq!(of("web", "2026-11-20T12:00:00Z"), mib(2));
        assert_eq!(of("web", "2026-11-20T20:00:00Z"), mib(9));
        assert_eq!(of("db", "2026-11-20T20:00:00Z"), None);
        assert_eq!(of("db", "2026-11-21T12:00:00Z"), mib(1));
        assert_eq!(of("mail", "2026-11-21T12:00:00Z"), None);
    }

    #[test]
    fn a_resync_window_says_when_it_opens_while_it_is_shut() {
        let rules = parse("[resync]\ndays = \"Sat,Sun\"\nhours = \"22:00-06:00\"").expect("rules");
        let opens = |moment| rules.resync_opens(at(moment)).map(|m| m.to_string());
        assert_eq!(opens("2026-11-21T19:59:59Z").as_deref(), Some("Sat 22:00"));
        assert_eq!(opens("2026-11-21T20:00:00Z"), None);
        assert_eq!(opens("2026-11-22T12:00:00Z").as_deref(), Some("Sun 22:00"));
        assert_eq!(opens("2026-11-23T03:59:59Z"), None);
        assert_eq!(opens("2026-11-23T04:00:00Z").as_deref(), Some("Sat 22:00"));
        assert_eq!(parse("").expect("rules").resync_opens(at("2026-11-23T04:00:00Z")), None);
    }

    #[test]
    fn what_is_wrong_in_a_window_is_told_with_its_line() {
        for (text, wanted) in [
            ("[[window]]\ndays = \"Mon\"", "gateway.toml:5: [[window]] has no rate: add rate = \"5MiB\""),
            ("[[window]]\nrate = \"5MiB\"\ndays = \"Mo-Fr\"", "gateway.toml:7: \"Mo-Fr\" are no days"),
            ("[[window]]\nrate = \"5MiB\"\nhours = \"8-18\"", "gateway.toml:7: \"8-18\" are no hours"),
            ("[[window]]\nrate = \"5 MB\"", "gateway.toml:6: rate: \"5 MB\" is no size"),
            ("[[window]]\nrate = \"5MiB\"\nday = \"Mon\"", "did you mean \"days\"?"),
            ("[window]\nrate = \"5MiB\"", "window is not a list: write [[window]]"),
            ("[resync]\ndays = \"Sat\"", "gateway.toml:5: [resync] has no hours: add hours"),
            ("[[webhook]]\nurl = \"http://hooks.site/\"", "gateway.toml:6: url begins with http: write https://"),
            ("[[webhook]]\nsecretfile = \"s3cret\"", "did you mean \"secret_file\"?"),
            (
                "[[webhook]]\nurl = \"https://h\"\n[[webhook]]\nurl = \"https://h\"",
                "gateway.toml:7: this webhook is named twice",
            ),
            ("[[machine]]\nrate = \"5MiB\"", "[[machine]] has no name"),
            ("[[machine]]\nname = \"a\"\n[[machine]]\nname = \"a\"", "gateway.toml:7: machine a is named twice"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
