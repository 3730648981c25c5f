//! Windows of the week: at which rate, and when.
//!
//! A minute of the week is counted from Monday, 00:00. What is asked here is asked with a minute: nothing in this file but [`Zone`] knows a clock.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, FixedOffset, Local, Offset, TimeZone, Timelike, Utc};
use landfall_model::Timestamp;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_MINUTES: u32 = 24 * 60;
const WEEK_MINUTES: u32 = 7 * DAY_MINUTES;
/// No place on earth is further from UTC.
const OFFSET_MINUTES_MAX: i32 = 14 * 60;

/// A minute of the week, from Monday 00:00 on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WeekMinute(u32);

#[cfg(test)]
impl Window {
    /// The same, but for when it begins.
    pub(crate) fn a_minute_later(mut self) -> Self {
        self.hours.from += 1;
        self
    }
}

#[cfg(test)]
impl WeekMinute {
    /// Whether it is before noon.
    pub(crate) fn is_morning(self) -> bool {
        self.0 % DAY_MINUTES < DAY_MINUTES / 2
    }
}

impl fmt::Display for WeekMinute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (day, minute) = (self.0 / DAY_MINUTES, self.0 % DAY_MINUTES);
        let day = usize::try_from(day).ok().and_then(|d| DAYS.get(d)).copied().unwrap_or("Mon");
        write!(f, "{day} {:02}:{:02}", minute / 60, minute % 60)
    }
}

/// What the hours of windows are hours of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Zone {
    /// Of the gateway's host, with its summer time.
    #[default]
    Host,
    /// So many minutes east of UTC, all year.
    Fixed(i32),
}

impl Zone {
    /// The minute of the week that a moment is in.
    pub fn minute(self, at: Timestamp) -> WeekMinute {
        let utc = DateTime::<Utc>::from_timestamp_millis(at.millis()).unwrap_or_default();
        let offset = match self {
            Self::Host => Local.offset_from_utc_datetime(&utc.naive_utc()).fix(),
            Self::Fixed(minutes) => FixedOffset::east_opt(minutes * 60).unwrap_or_else(|| Utc.fix()),
        };
        let there = utc.with_timezone(&offset);
        WeekMinute(there.weekday().num_days_from_monday() * DAY_MINUTES + there.hour() * 60 + there.minute())
    }
}

impl FromStr for Zone {
    type Err = String;

    /// `+02:00`, `-03:30`, `+00:00`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is no offset: write for example \"+02:00\", or leave it out for the time of this host")
        };
        let (sign, rest) = match text.split_at_checked(1) {
            Some(("+", rest)) => (1, rest),
            Some(("-", rest)) => (-1, rest),
            _ => return Err(wrong()),
        };
        let minutes = i32::try_from(clock(rest).ok_or_else(wrong)?).map_err(|_| wrong())?;
        if minutes > OFFSET_MINUTES_MAX {
            return Err(wrong());
        }
        Ok(Self::Fixed(sign * minutes))
    }
}

/// `HH:MM` as minutes, up to `24:00`.
fn clock(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |part: &str| {
        (part.len() == 2).then(|| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?)?
    };
    let (hours, minutes): (u32, u32) = (two(hours)?, two(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= DAY_MINUTES).then_some(hours * 60 + minutes)
}

/// Days of the week on which a window begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Days([bool; 7]);

impl Days {
    pub(crate) const DAILY: Self = Self([true; 7]);
}

impl FromStr for Days {
    type Err = String;

    /// `Mon-Fri`, `Sat,Sun`, `Fri-Mon`, `daily`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} are no days: write for example \"Mon-Fri\", \"Sat,Sun\" or \"daily\"");
        if text == "daily" {
            return Ok(Self::DAILY);
        }
        let day = |name: &str| DAYS.iter().position(|d| *d == name.trim()).ok_or_else(wrong);
        let mut days = [false; 7];
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            for n in 0..=(last + 7 - first) % 7 {
                days[(first + n) % 7] = true;
            }
        }
        Ok(Self(days))
    }
}

/// Hours of a day; they may pass midnight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hours {
    from: u32,
    /// From `from` on.
    minutes: u32,
}

impl Hours {
    pub(crate) const ALL: Self = Self { from: 0, minutes: DAY_MINUTES };
}

impl FromStr for Hours {
    type Err = String;

    /// `08:00-18:00`, `22:00-06:00`, `00:00-24:00`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').and_then(|(from, to)| Some((clock(from.trim())?, clock(to.trim())?)));
        let (from, to) = parts.filter(|(from, to)| *from < DAY_MINUTES && from != to).ok_or_else(|| {
            format!("{text:?} are no hours: write for example \"08:00-18:00\", \"22:00-06:00\" or \"00:00-24:00\"")
        })?;
        Ok(Self { from, minutes: if to > from { to - from } else { to + DAY_MINUTES - from } })
    }
}

/// The same hours on some days of the week. The day is the one on which the hours begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    pub(crate) days: Days,
    pub(crate) hours: Hours,
}

impl Window {
    /// Whether a minute is in it.
    pub fn holds(&self, at: WeekMinute) -> bool {
        self.begins().any(|begin| (at.0 + WEEK_MINUTES - begin) % WEEK_MINUTES < self.hours.minutes)
    }

    /// The minute at which it opens next.
    pub fn opens_after(&self, at: WeekMinute) -> WeekMinute {
        let until = |begin: &u32| (begin + WEEK_MINUTES - at.0) % WEEK_MINUTES;
        WeekMinute(self.begins().min_by_key(until).unwrap_or(at.0))
    }

    fn begins(&self) -> impl Iterator<Item = u32> {
        let from = self.hours.from;
        let days = self.days.0.into_iter().zip(0_u32..);
        days.filter_map(move |(on, day)| on.then_some(day * DAY_MINUTES + from))
    }
}

/// What holds usually, and what holds in windows: of several that a minute is in, the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule<T> {
    usual: T,
    windows: Vec<(Window, T)>,
}

impl<T: Copy> Schedule<T> {
    /// One without a window.
    pub fn always(usual: T) -> Self {
        Self { usual, windows: Vec::new() }
    }

    /// What holds outside of all windows.
    pub fn usual(&self) -> T {
        self.usual
    }

    pub(crate) fn add(&mut self, window: Window, value: T) {
        self.windows.push((window, value));
    }

    /// What holds in a minute.
    pub fn at(&self, minute: WeekMinute) -> T {
        self.windows.iter().find(|(window, _)| window.holds(minute)).map_or(self.usual, |(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &str, hours: &str) -> Window {
        Window { days: days.parse().expect("days"), hours: hours.parse().expect("hours") }
    }

    fn minute(day: u32, hour: u32, minute: u32) -> WeekMinute {
        WeekMinute(day * DAY_MINUTES + hour * 60 + minute)
    }

    #[test]
    fn a_window_holds_its_hours_on_its_days_in_every_minute_of_the_week() {
        let work = window("Mon-Fri", "08:00-18:00");
        for m in 0..WEEK_MINUTES {
            let (day, minute) = (m / DAY_MINUTES, m % DAY_MINUTES);
            assert_eq!(work.holds(WeekMinute(m)), day < 5 && (480..1080).contains(&minute), "minute {m}");
        }
        let all = window("daily", "00:00-24:00");
        assert!((0..WEEK_MINUTES).all(|m| all.holds(WeekMinute(m))));
    }

    #[test]
    fn a_window_that_passes_midnight_belongs_to_the_day_on_which_it_begins() {
        let night = window("Sat,Sun", "22:00-06:00");
        let within = |m: u32| {
            // Saturday 22:00 to Sunday 06:00; Sunday 22:00 to the end of the week; and what of it is in the next.
            (5 * DAY_MINUTES + 1320..6 * DAY_MINUTES + 360).contains(&m) || !(360..6 * DAY_MINUTES + 1320).contains(&m)
        };
        for m in 0..WEEK_MINUTES {
            assert_eq!(night.holds(WeekMinute(m)), within(m), "{}", WeekMinute(m));
        }
        // Days that pass the end of the week.
        assert_eq!(window("Fri-Mon", "00:00-24:00").days, window("Sun,Mon,Fri,Sat", "00:00-24:00").days);
        assert_eq!(window("daily", "00:00-24:00").days, Days::DAILY);
    }

    #[test]
    fn the_next_opening_is_found_over_the_end_of_the_week() {
        let night = window("Tue,Sat", "22:00-06:00");
        assert_eq!(night.opens_after(minute(0, 0, 0)).to_string(), "Tue 22:00");
        assert_eq!(night.opens_after(minute(1, 22, 0)).to_string(), "Tue 22:00");
        assert_eq!(night.opens_after(minute(1, 22, 1)).to_string(), "Sat 22:00");
        assert_eq!(night.opens_after(minute(6, 23, 59)).to_string(), "Tue 22:00");
    }

    #[test]
    fn of_several_windows_the_first_holds_and_else_what_is_usual() {
        let mut schedule = Schedule::always(Some(50));
        schedule.add(window("Wed", "12:00-13:00"), None);
        schedule.add(window("Mon-Fri", "08:00-18:00"), Some(5));
        let at = |day, hour| schedule.at(minute(day, hour, 0));
        assert_eq!(
            [at(2, 7), at(2, 8), at(2, 12), at(2, 13), at(2, 18), at(5, 12)],
            [Some(50), Some(5), None, Some(5), Some(50), Some(50)]
        );
    }

    #[test]
    fn a_moment_is_a_minute_of_the_week_there() {
        let at: Timestamp = "2026-11-22T23:30:59.999Z".parse().expect("a time");
        assert_eq!(Zone::Fixed(0).minute(at).to_string(), "Sun 23:30");
        assert_eq!("+02:00".parse::<Zone>().expect("an offset").minute(at).to_string(), "Mon 01:30");
        assert_eq!("-03:30".parse::<Zone>().expect("an offset").minute(at).to_string(), "Sun 20:00");
    }

    #[test]
    fn what_is_no_days_hours_or_offset_is_told_how_to_write() {
        for days in ["", "mon", "Mon-", "Monday", "Mon;Tue", "weekdays"] {
            assert!(days.parse::<Days>().expect_err(days).contains("Mon-Fri"));
        }
        for hours in ["", "8-18", "08:00", "08:00-08:00", "24:00-06:00", "08:60-09:00", "00:00-24:01", "+8:00-09:00"] {
            assert!(hours.parse::<Hours>().expect_err(hours).contains("08:00-18:00"));
        }
        for offset in ["", "02:00", "+2", "+15:00", "UTC", "+02:0x"] {
            assert!(offset.parse::<Zone>().expect_err(offset).contains("+02:00"));
        }
    }
}
