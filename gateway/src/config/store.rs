//! The section `[store]`: how the store is reached.

use landfall_model::Result;
use landfall_settings::Table;
use landfall_vault::StoreOptions;

const KEYS: &[&str] = &["proxy", "proxy_credentials_file", "no_proxy", "ca_files"];

/// Reads the section. Files that it names are read when the store is opened.
///
/// # Errors
/// `Usage`, naming the line and what to do.
pub(super) fn options(table: &Table<'_>) -> Result<StoreOptions> {
    table.only(KEYS)?;
    let source = table.source();
    let texts = |key| table.get(key).map(|value| source.texts(value)).transpose().map(Option::unwrap_or_default);
    let proxy = table.text("proxy")?;
    if let Some((at, url)) = &proxy {
        StoreOptions::check_proxy(url).map_err(|why| source.wrong(*at, why))?;
    }
    for key in ["proxy_credentials_file", "no_proxy"] {
        if let (Some(value), None) = (table.get(key), &proxy) {
            let why = format!(
                "{key} without proxy does nothing: add proxy = \"http://HOST:PORT\", or use HTTPS_PROXY and NO_PROXY"
            );
            return Err(source.wrong(value.span().start, why));
        }
    }
    let no_proxy = texts("no_proxy")?;
    for (at, host) in &no_proxy {
        StoreOptions::check_no_proxy(host).map_err(|why| source.wrong(*at, why))?;
    }
    let ca_files = texts("ca_files")?.into_iter().map(|(at, file)| source.absolute(at, &file));
    Ok(StoreOptions {
        proxy: proxy.map(|(_, url)| url),
        proxy_credentials_file: table.path("proxy_credentials_file")?,
        no_proxy: no_proxy.into_iter().map(|(_, host)| host).collect(),
        ca_files: ca_files.collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::GatewayConfig;

    fn parse(section: &str) -> Result<StoreOptions> {
        let text = format!("[gateway]\nvault = \"file:///v\"\nsite_key = \"/k\"\n{section}");
        GatewayConfig::parse(&text, Path::new("gateway.toml")).map(|config| config.store)
    }

    #[test]
    fn a_section_says_how_the_store_is_reached() {
        assert_eq!(parse("").expect("none"), StoreOptions::default());
        let section = "[store]\nproxy = \"http://proxy.site:3128\"\nproxy_credentials_file = \"/etc/landfall/proxy\"\n\
            no_proxy = [\"store.site\", \"10.0.0.0/8\"]\nca_files = [\"/etc/ssl/own.pem\"]\n";
        let wanted = StoreOptions {
            proxy: Some("http://proxy.site:3128".to_owned()),
            proxy_credentials_file: Some(PathBuf::from("/etc/landfall/proxy")),
            no_proxy: vec!["store.site".to_owned(), "10.0.0.0/8".to_owned()],
            ca_files: vec![PathBuf::from("/etc/ssl/own.pem")],
        };
        assert_eq!(parse(section).expect("right"), wanted);
    }

    #[test]
    fn what_is_wrong_in_it_is_told_with_its_line_and_never_with_a_password() {
        for (line, wanted) in [
            ("proxy = \"http://user:hunter22@proxy:3128\"", "name that with proxy_credentials_file"),
            ("proxy = \"proxy.site port 3128\"", "write http://HOST:PORT"),
            ("no_proxy = [\"store.site\"]", "no_proxy without proxy does nothing"),
            ("proxy_credentials_file = \"/p\"", "proxy_credentials_file without proxy does nothing"),
            ("ca_files = [\"own.pem\"]", "the path \"own.pem\" is relative"),
            ("ca_file = \"/own.pem\"", "did you mean \"ca_files\"?"),
        ] {
            let error = parse(&format!("[store]\n{line}\n")).expect_err(line).to_string();
            assert!(error.starts_with("gateway.toml:5: ") && error.contains(wanted), "{line}: {error}");
            assert!(!error.contains("hunter22"), "{error}");
        }
        let error = parse("[store]\nproxy = \"http://p:1\"\nno_proxy = [\"store.site:443\"]\n").expect_err("a port");
        assert!(error.to_string().starts_with("gateway.toml:6: \"store.site:443\" is no host"), "{error}");
    }
}
