//! `/logging`: log levels, read and changed.

use ::http::StatusCode;

use super::Context;
use super::http::{Answer, Query, text};

/// Lists what is in force.
pub(super) fn list(context: &Context) -> Answer {
    match &context.log {
        Some(log) => text(StatusCode::OK, active(&log.directives())),
        None => text(StatusCode::NOT_FOUND, "log levels cannot be changed in this process\n"),
    }
}

/// Changes levels: `level=L` for all, `paths=TARGET:L,…` or `TARGET=L` for some.
pub(super) fn change(context: &Context, query: &Query) -> Answer {
    let Some(log) = &context.log else { return list(context) };
    let directives = match merged(&log.directives(), query) {
        Ok(directives) => directives,
        Err(error) => return text(StatusCode::BAD_REQUEST, usage(&error)),
    };
    match log.set(&directives) {
        Ok(()) => list(context),
        Err(error) => text(StatusCode::BAD_REQUEST, usage(&error.to_string())),
    }
}

fn usage(error: &str) -> String {
    format!(
        "error: {error}\n\nusage: /logging?<name>=<level> (change single level)\nusage: \
         /logging?paths=name1:level1,name2:level2,... (change multiple levels)\nusage: \
         /logging?level=<level> (change all levels)\nlevels: trace debug info warning error \
         critical off\n"
    )
}

fn active(directives: &str) -> String {
    let mut out = String::from("active loggers:\n");
    for directive in directives.split(',') {
        let (target, level) = directive.split_once('=').unwrap_or(("default", directive));
        out.push_str(&format!("  {target}: {level}\n"));
    }
    out
}

/// The directives in force with the query's changes.
fn merged(current: &str, query: &Query) -> Result<String, String> {
    let mut default = "info".to_owned();
    let mut targets: Vec<(String, String)> = vec![];
    for directive in current.split(',').filter(|directive| !directive.is_empty()) {
        match directive.split_once('=') {
            Some((target, level)) => targets.push((target.to_owned(), level.to_owned())),
            None => default = directive.to_owned(),
        }
    }
    for (name, value) in &query.params {
        match name.as_str() {
            "level" => {
                default = level(value)?.to_owned();
                targets.clear();
            }
            "paths" => {
                for pair in value.split(',') {
                    // The target itself may contain `::`.
                    let (target, value) =
                        pair.rsplit_once(':').ok_or_else(|| format!("{pair}: no level"))?;
                    set(&mut targets, target, value)?;
                }
            }
            target => set(&mut targets, target, value)?,
        }
    }
    let targets = targets.into_iter().map(|(target, level)| format!("{target}={level}"));
    Ok(std::iter::once(default).chain(targets).collect::<Vec<_>>().join(","))
}

fn set(targets: &mut Vec<(String, String)>, target: &str, value: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if target.is_empty() || !target.chars().all(valid) {
        return Err(format!("unknown logger name: {target}"));
    }
    let level = level(value)?.to_owned();
    targets.retain(|(have, _)| have != target);
    targets.push((target.to_owned(), level));
    Ok(())
}

/// Our name of one of Envoy's levels.
pub(crate) fn level(text: &str) -> Result<&'static str, String> {
    Ok(match text {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        other => return Err(format!("unknown logger level: {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(current: &str, params: &[(&str, &str)]) -> Result<String, String> {
        let params = params.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let query = Query {
            method: ::http::Method::POST,
            path: "/logging".into(),
            target: "/logging".into(),
            params: params.collect(),
            from: ([127, 0, 0, 1], 1).into(),
        };
        merged(current, &query)
    }

    #[test]
    fn one_target_or_all_can_be_changed() {
        let one = change("info", &[("amime_engine::http", "debug")]);
        assert_eq!(one.as_deref(), Ok("info,amime_engine::http=debug"));
        let paths = change("info,a=warn", &[("paths", "a:trace,b::c:critical")]);
        assert_eq!(paths.as_deref(), Ok("info,a=trace,b::c=error"));
        assert_eq!(change("info,a=warn", &[("level", "warning")]).as_deref(), Ok("warn"));
    }

    #[test]
    fn unknown_levels_and_names_are_refused() {
        assert!(change("info", &[("level", "loud")]).is_err());
        assert!(change("info", &[("a b", "info")]).is_err());
        assert!(change("info", &[("paths", "a")]).is_err());
    }
}
