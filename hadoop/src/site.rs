//! A Hadoop cluster's client configuration: a folder with its core-site.xml and hdfs-site.xml, read into the few typed
//! settings that are needed. What is not supported is refused here, with the place and the reason, not later.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::namenode::Settings;
use crate::principal::{Glob, Principal, ServerIdentity};
use crate::rpc::Protection;

/// Files of the folder; a later one overrides an earlier one's properties unless those are final.
const FILES: [&str; 2] = ["core-site.xml", "hdfs-site.xml"];

const DEFAULT_PORT: u16 = 8020;
const MAX_FILE: u64 = 4 << 20;
const MAX_NODES: u32 = 200_000;
const XINCLUDE: &str = "http://www.w3.org/2001/XInclude";

/// How often a value may refer to others, as in Hadoop.
const MAX_EXPANSIONS: usize = 20;
/// Longest value after expansion.
const MAX_VALUE: usize = 10_000;

/// The settings of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Where `fs.defaultFS` is.
    pub namenode: Settings,
}

impl Site {
    /// Reads the folder.
    ///
    /// # Errors
    ///
    /// Every mistake at once, each with its file and line.
    pub fn load(folder: &Path) -> Result<Self, SiteError> {
        let mut properties = Properties { folder: folder.to_owned(), values: HashMap::new() };
        for name in FILES {
            let file = folder.join(name);
            let text = read(&file).map_err(|why| SiteError(vec![format!("{}: {why}", file.display())]))?;
            properties.add(&file, &text)?;
        }
        properties.site()
    }
}

/// Mistakes in a cluster's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteError(Vec<String>);

impl std::error::Error for SiteError {}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

fn read(file: &Path) -> Result<String, String> {
    let missing = |error: std::io::Error| {
        format!("cannot be read: {error} (copy the cluster's client configuration here)")
    };
    let mut text = String::new();
    let opened = File::open(file).map_err(missing)?;
    opened
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > MAX_FILE { Err("is too large".to_owned()) } else { Ok(text) }
}

struct Property {
    value: String,
    is_final: bool,
    /// Where it stands.
    file: PathBuf,
    line: u32,
}

struct Properties {
    folder: PathBuf,
    values: HashMap<String, Property>,
}

impl Properties {
    /// Adds one file's properties.
    fn add(&mut self, file: &Path, text: &str) -> Result<(), SiteError> {
        let error = |line: u32, what: String| SiteError(vec![format!("{}:{line}: {what}", file.display())]);
        let options = roxmltree::ParsingOptions { nodes_limit: MAX_NODES, ..Default::default() };
        let document = roxmltree::Document::parse_with_options(text, options)
            .map_err(|failure| error(failure.pos().row, failure.to_string()))?;
        let line = |node: &roxmltree::Node<'_, '_>| document.text_pos_at(node.range().start).row;
        let root = document.root_element();
        if root.tag_name().name() != "configuration" {
            return Err(error(
                line(&root),
                format!("<{}> instead of <configuration>", root.tag_name().name()),
            ));
        }
        if let Some(include) = root.descendants().find(|node| node.tag_name().namespace() == Some(XINCLUDE)) {
            let what = "XInclude is not supported: write the included properties into this file";
            return Err(error(line(&include), what.to_owned()));
        }
        for node in root.children().filter(roxmltree::Node::is_element) {
            if node.tag_name().name() != "property" {
                return Err(error(
                    line(&node),
                    format!("<{}> instead of <property>", node.tag_name().name()),
                ));
            }
            let child = |name: &str| {
                let element = node.children().find(|child| child.has_tag_name(name));
                element.map(|element| element.text().unwrap_or_default()).or_else(|| node.attribute(name))
            };
            let Some(name) = child("name").map(str::trim).filter(|name| !name.is_empty()) else {
                return Err(error(line(&node), "a property without a name".to_owned()));
            };
            // Hadoop ignores a property without a value, too.
            let Some(value) = child("value") else { continue };
            if self.values.get(name).is_some_and(|earlier| earlier.is_final && earlier.file != file) {
                continue;
            }
            let is_final = child("final").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"));
            let property = Property {
                value: value.trim().to_owned(),
                is_final,
                file: file.to_owned(),
                line: line(&node),
            };
            self.values.insert(name.to_owned(), property);
        }
        Ok(())
    }

    /// Where a value stands, or where it should.
    fn place(&self, name: &str) -> String {
        match self.values.get(name) {
            Some(Property { file, line, .. }) => format!("{}:{line}: {name}", file.display()),
            None => format!("{}: {name}", self.folder.display()),
        }
    }

    /// A value with its references replaced; `None` when it is not set, or empty.
    fn get(&self, name: &str) -> Result<Option<String>, String> {
        let Some(property) = self.values.get(name) else { return Ok(None) };
        let mut value = property.value.clone();
        let mut expansions = 0;
        // Innermost reference first, so that one may name another.
        while let Some((before, reference, after)) = innermost_reference(&value) {
            if expansions >= MAX_EXPANSIONS || value.len() > MAX_VALUE {
                return Err(format!("{} refers to too many other properties", self.place(name)));
            }
            expansions += 1;
            let Some(referred) = self.values.get(reference) else {
                return Err(format!(
                    "{} refers to ${{{reference}}}, which these files do not set",
                    self.place(name)
                ));
            };
            value = format!("{before}{}{after}", referred.value);
        }
        Ok(Some(value).filter(|value| !value.is_empty()))
    }

    fn site(&self) -> Result<Site, SiteError> {
        let mut problems = Vec::new();
        let mut keep = |problem: Result<(), String>| problems.extend(problem.err());

        keep(self.kerberos());
        let protection = self.protection();
        keep(protection.as_ref().map(drop).map_err(Clone::clone));
        let services_by_address = self.flag("hadoop.security.token.service.use_ip", true);
        keep(services_by_address.as_ref().map(drop).map_err(Clone::clone));
        let address = self.address();
        keep(address.as_ref().map(drop).map_err(Clone::clone));
        let identity = self.identity(address.as_ref().map_or("", |(host, _)| host));
        keep(identity.as_ref().map(drop).map_err(Clone::clone));

        match (protection, services_by_address, address, identity) {
            (Ok(protection), Ok(services_by_address), Ok((host, port)), Ok(identity))
                if problems.is_empty() =>
            {
                Ok(Site { namenode: Settings { host, port, identity, protection, services_by_address } })
            }
            _ => Err(SiteError(problems)),
        }
    }

    fn kerberos(&self) -> Result<(), String> {
        let name = "hadoop.security.authentication";
        match self.get(name)?.as_deref() {
            Some(value) if value.eq_ignore_ascii_case("kerberos") => Ok(()),
            other => Err(format!(
                "{} is {}, but only a cluster with kerberos issues tokens",
                self.place(name),
                other.unwrap_or("not set, which means simple")
            )),
        }
    }

    /// The weakest of the listed protections.
    fn protection(&self) -> Result<Protection, String> {
        let name = "hadoop.rpc.protection";
        let Some(value) = self.get(name)? else { return Ok(Protection::Authentication) };
        let named = |word: &str| {
            Protection::named(&word.trim().to_ascii_lowercase()).ok_or_else(|| {
                format!(
                    "{} has {word:?}, which is none of authentication, integrity, privacy",
                    self.place(name)
                )
            })
        };
        let listed = value.split(',').map(named).collect::<Result<Vec<_>, _>>()?;
        Ok(listed.into_iter().min().unwrap_or(Protection::Authentication))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.get(name)?.as_deref() {
            None => Ok(default),
            Some(value) if value.eq_ignore_ascii_case("true") => Ok(true),
            Some(value) if value.eq_ignore_ascii_case("false") => Ok(false),
            Some(value) => Err(format!("{} is {value:?}, neither true nor false", self.place(name))),
        }
    }

    fn address(&self) -> Result<(String, u16), String> {
        let name = "fs.defaultFS";
        let place = self.place(name);
        let Some(uri) = self.get(name)? else {
            return Err(format!("{place} is not set; write hdfs://HOST:PORT"));
        };
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Err(format!("{place} is {uri:?}, not hdfs://HOST:PORT"));
        };
        if !scheme.eq_ignore_ascii_case("hdfs") {
            return Err(format!("{place} is {uri:?}, but only hdfs:// is supported so far"));
        }
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().ok().filter(|port| *port != 0);
                (host, port.ok_or_else(|| format!("{place} is {uri:?}, whose port is not a number"))?)
            }
            None => (authority, DEFAULT_PORT),
        };
        let nameservices = self.get("dfs.nameservices")?.unwrap_or_default();
        if !authority.is_empty() && nameservices.split(',').any(|nameservice| nameservice.trim() == authority)
        {
            return Err(format!(
                "{place} is {uri:?}, a nameservice of several NameNodes (dfs.nameservices), which is not supported yet; write \
                 hdfs://HOST:PORT of one NameNode"
            ));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || host.len() > 253 || !host.chars().all(allowed) {
            return Err(format!("{place} is {uri:?}, whose host is not a host name"));
        }
        Ok((host.to_ascii_lowercase(), port))
    }

    fn identity(&self, host: &str) -> Result<ServerIdentity, String> {
        let name = "dfs.namenode.kerberos.principal";
        let place = self.place(name);
        let Some(text) = self.get(name)? else {
            return Err(format!(
                "{place} is not set; write the NameNode's principal, such as nn/_HOST@REALM"
            ));
        };
        let principal: Principal = text.parse().map_err(|error| format!("{place}: {error}"))?;
        let principal = match principal.instance() {
            Some("_HOST") => principal.with_instance(host),
            Some(_) => principal,
            None => return Err(format!("{place} is {text}, without a host; write NAME/_HOST@REALM")),
        };
        let name = "dfs.namenode.kerberos.principal.pattern";
        let pattern = self.get(name)?.map(|text| text.parse::<Glob>()).transpose();
        let pattern = pattern.map_err(|error| format!("{}: {error}", self.place(name)))?;
        Ok(ServerIdentity { principal, pattern })
    }
}

/// What stands before, in and after the first `${...}` that holds no other.
fn innermost_reference(value: &str) -> Option<(&str, &str, &str)> {
    let (head, after) =
        value.split_at_checked(value.find('}').filter(|end| value[..*end].contains("${"))?)?;
    let (before, reference) = head.rsplit_once("${")?;
    Some((before, reference, after.strip_prefix('}')?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CORE: &str = r"<configuration>
<property><name>fs.defaultFS</name><value>hdfs://NN1.bed.test</value></property>
<property><name>hadoop.security.authentication</name><value> kerberos </value></property>
</configuration>";
    const HDFS: &str = r"<configuration>
<property><name>dfs.namenode.kerberos.principal</name><value>nn/_HOST@${realm}</value></property>
<property><name>realm</name><value>BED.TEST</value></property>
</configuration>";

    fn site(core: &str, hdfs: &str) -> Result<Settings, String> {
        let mut properties = Properties { folder: "conf".into(), values: HashMap::new() };
        for (file, text) in FILES.iter().zip([core, hdfs]) {
            properties.add(Path::new(file), text).map_err(|error| error.to_string())?;
        }
        properties.site().map(|site| site.namenode).map_err(|error| error.to_string())
    }

    /// `CORE` with these properties behind it.
    fn with(properties: &[(&str, &str)]) -> String {
        let more: String = properties
            .iter()
            .map(|(name, value)| format!("<property><name>{name}</name><value>{value}</value></property>\n"))
            .collect();
        CORE.replace("</configuration>", &format!("{more}</configuration>"))
    }

    #[track_caller]
    fn check_refusal(core: &str, hdfs: &str, expected: &str) {
        let refusal = site(core, hdfs).unwrap_err();
        assert!(refusal.contains(expected), "{refusal}");
    }

    #[test]
    fn reads_a_plain_cluster() {
        let settings = site(CORE, HDFS).unwrap();
        assert_eq!(settings.to_string(), "nn1.bed.test:8020");
        assert_eq!(settings.identity.principal.to_string(), "nn/nn1.bed.test@BED.TEST");
        assert_eq!(settings.identity.pattern, None);
        assert_eq!(settings.protection, Protection::Authentication);
        assert!(settings.services_by_address);
    }

    #[test]
    fn reads_what_may_be_set_besides() {
        let settings = site(
            &with(&[
                ("hadoop.rpc.protection", "privacy,integrity"),
                ("hadoop.security.token.service.use_ip", "false"),
                ("dfs.namenode.kerberos.principal.pattern", "nn/*@BED.TEST"),
                ("fs.defaultFS", "hdfs://nn2.bed.test:9000/"),
            ]),
            HDFS,
        )
        .unwrap();
        assert_eq!(settings.to_string(), "nn2.bed.test:9000");
        assert_eq!(settings.protection, Protection::Integrity);
        assert!(!settings.services_by_address);
        assert!(settings.identity.pattern.unwrap().matches("nn/x@BED.TEST"));
    }

    #[test]
    fn a_final_property_is_not_overridden_by_a_later_file() {
        let later = HDFS.replace(
            "</configuration>",
            "<property name='fs.defaultFS' value='hdfs://evil'/></configuration>",
        );
        assert_eq!(site(CORE, &later).unwrap().host, "evil");
        let core = CORE.replace("<name>fs.defaultFS</name>", "<name>fs.defaultFS</name><final>true</final>");
        assert_eq!(site(&core, &later).unwrap().host, "nn1.bed.test");
    }

    #[test]
    fn says_what_is_missing_or_wrong_and_where() {
        check_refusal("<configuration/>", HDFS, "conf: fs.defaultFS is not set; write hdfs://HOST:PORT");
        check_refusal(
            "<configuration/>",
            HDFS,
            "hadoop.security.authentication is not set, which means simple",
        );
        check_refusal(CORE, "<configuration/>", "dfs.namenode.kerberos.principal is not set");
        check_refusal(
            &with(&[("hadoop.rpc.protection", "secret")]),
            HDFS,
            "core-site.xml:4: hadoop.rpc.protection has \"secret\"",
        );
        check_refusal(&with(&[("fs.defaultFS", "viewfs://c/")]), HDFS, "only hdfs:// is supported");
        check_refusal(&with(&[("fs.defaultFS", "hdfs:///x")]), HDFS, "whose host is not a host name");
        check_refusal(&with(&[("fs.defaultFS", "hdfs://h:x")]), HDFS, "whose port is not a number");
        check_refusal(
            &with(&[("fs.defaultFS", "hdfs://ns1"), ("dfs.nameservices", "ns0, ns1")]),
            HDFS,
            "which is not supported yet",
        );
        check_refusal(
            &with(&[("dfs.namenode.kerberos.principal", "nn@R")]),
            "<configuration/>",
            "without a host; write NAME/_HOST@REALM",
        );
        check_refusal(
            &with(&[("dfs.namenode.kerberos.principal.pattern", "{a")]),
            HDFS,
            "a '{' is not closed",
        );
    }

    #[test]
    fn refuses_what_it_cannot_read_with_the_line() {
        check_refusal("<configuration>\n</property>", HDFS, "core-site.xml:2:");
        check_refusal("<conf/>", HDFS, "<conf> instead of <configuration>");
        check_refusal(
            "<configuration xmlns:xi='http://www.w3.org/2001/XInclude'>\n<xi:include href='a.xml'/></configuration>",
            HDFS,
            "core-site.xml:2: XInclude is not supported",
        );
        check_refusal(
            "<!DOCTYPE c [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><configuration>&a;</configuration>",
            HDFS,
            "core-site.xml:1:",
        );
    }

    #[test]
    fn references_are_bounded() {
        check_refusal(
            &with(&[("fs.defaultFS", "hdfs://${a}"), ("a", "${b}"), ("b", "${a}")]),
            HDFS,
            "refers to too many other properties",
        );
        let swelling: Vec<_> =
            (0..20).map(|n| (format!("a{n}"), format!("${{a{}}}", n + 1).repeat(20))).collect();
        let mut swelling: Vec<_> = swelling.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        swelling.push(("fs.defaultFS", "hdfs://${a0}"));
        check_refusal(&with(&swelling), HDFS, "refers to too many other properties");
        check_refusal(
            &with(&[("fs.defaultFS", "hdfs://${no}")]),
            HDFS,
            "${no}, which these files do not set",
        );
        let nested = with(&[("fs.defaultFS", "hdfs://${host.${n}}"), ("n", "1"), ("host.1", "x")]);
        assert_eq!(site(&nested, HDFS).unwrap().host, "x");
    }

    proptest! {
        #[test]
        fn arbitrary_values_never_panic(value in "[a-z:/.${}@_*,\\[\\]]{0,40}", name in 0..5usize) {
            let names = [
                "fs.defaultFS", "hadoop.rpc.protection", "dfs.namenode.kerberos.principal.pattern",
                "dfs.namenode.kerberos.principal", "dfs.nameservices",
            ];
            let _ = site(&with(&[(names[name], &value)]), "<configuration/>");
        }

        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = site(&text, HDFS);
        }
    }
}
