//! One line of the audit log: who asked for what, in whose name, and what came of it. Has no place for a secret:
//! a token is in it by its number only.

use std::fmt;

use jiff::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeSeq};

/// Longest text and longest list that a record takes over; what is beyond is cut, and the cut is shown.
const MAX_TEXT: usize = 1024;
const MAX_LIST: usize = 256;

/// What was asked for or done. Also a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// A node plugin asks for new tokens.
    Issue,
    /// A node plugin asks for more time.
    Renew,
    /// A node plugin asks whether a volume may keep its tokens.
    Check,
    /// Tokens are taken from a volume that may not keep them.
    Revoke,
    /// A node plugin gives tokens back.
    Release,
    /// A token that reached nobody is cancelled.
    Cancel,
    /// A pod's addresses are compared.
    Verify,
    /// A node plugin wants to hear of changes.
    Watch,
}

impl Action {
    /// As it stands in records and labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Issue => "issue",
            Self::Renew => "renew",
            Self::Check => "check",
            Self::Revoke => "revoke",
            Self::Release => "release",
            Self::Cancel => "cancel",
            Self::Verify => "verify",
            Self::Watch => "watch",
        }
    }
}

/// What came of it. Also a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Decision {
    /// Allowed and done.
    Granted,
    /// Not allowed.
    Refused,
    /// Not decided, or allowed and not done.
    Failed,
}

impl Decision {
    /// As it stands in records and labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Names one call, in our audit log and in the NameNode's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId(u64);

impl RequestId {
    /// One that no other call has, as far as chance allows.
    pub(crate) fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A token, named so that it is found in the NameNode's audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenNumber {
    pub(crate) sequence_number: i32,
    /// Milliseconds since the epoch.
    pub(crate) max_date: u64,
}

impl From<&hadoop::TokenIdentifier> for TokenNumber {
    fn from(identifier: &hadoop::TokenIdentifier) -> Self {
        Self { sequence_number: identifier.sequence_number, max_date: identifier.max_date }
    }
}

/// One line of the audit log. What is not known stays empty, and is then not written.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    #[serde(serialize_with = "milliseconds")]
    time: Timestamp,
    pub(crate) action: Action,
    pub(crate) decision: Decision,
    /// As in docs/errors.md. None when granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// The reason in words.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) message: Option<String>,
    /// Why it was done, where nobody asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<&'static str>,
    #[serde(serialize_with = "display")]
    request_id: RequestId,
    /// Kubernetes user who submitted the pod, and the user's groups.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) submitter: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "texts")]
    pub(crate) groups: Vec<String>,
    /// Hadoop user that the submitter is.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) mapped_user: Option<String>,
    /// Hadoop user that owns the tokens: the former, or the account acted for.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) user: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
    /// Name of the volume in the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) volume: String,
    /// Node whose plugin asks.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) node: Option<String>,
    /// Ids of the pod's images, as far as the API server knows them.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "texts")]
    pub(crate) images: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text")]
    pub(crate) cluster: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "texts")]
    pub(crate) services: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tokens: Vec<TokenNumber>,
}

impl Record {
    /// A record of now. It says [`Decision::Failed`] until it is told better.
    pub(crate) fn new(action: Action, request_id: RequestId) -> Self {
        Self {
            time: Timestamp::now(),
            action,
            decision: Decision::Failed,
            reason: None,
            message: None,
            why: None,
            request_id,
            submitter: None,
            groups: Vec::new(),
            mapped_user: None,
            user: None,
            namespace: String::new(),
            pod: String::new(),
            uid: String::new(),
            volume: String::new(),
            node: None,
            images: Vec::new(),
            cluster: None,
            services: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// What the NameNode's audit log shows of the call. Hadoop cuts it at 128 bytes, so the id comes before the names.
    pub(crate) fn caller_context(&self) -> String {
        format!("hadoop-token-csi:{}:{}/{}", self.request_id, self.namespace, self.pod)
    }

    /// Another record about the same pod and of the same call, of now: `action` was done because of `why`.
    pub(crate) fn follow_up(&self, action: Action, why: &'static str) -> Self {
        let decision = Decision::Failed;
        let (reason, message) = (None, None);
        Self { time: Timestamp::now(), action, decision, reason, message, why: Some(why), ..self.clone() }
    }

    /// The call did what was asked for.
    pub(crate) fn granted(&mut self) {
        (self.decision, self.reason, self.message) = (Decision::Granted, None, None);
    }

    /// It was not allowed.
    pub(crate) fn refused(&mut self, reason: &'static str, message: String) {
        (self.decision, self.reason, self.message) = (Decision::Refused, Some(reason), Some(message));
    }

    /// The record as one line, with its end: JSON in ASCII, so that no text in it can begin a line or steer a
    /// terminal.
    pub(super) fn line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let json = serde_json::to_string(self)?;
        let mut line = String::with_capacity(json.len() + 1);
        // All that is not ASCII is within a string, where an escape means the same. serde_json has escaped C0.
        for character in json.chars() {
            if character.is_ascii() && character != '\x7f' {
                line.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    line.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        line.push('\n');
        Ok(line.into_bytes())
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}[cut]", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

// serde hands over references to the fields.
#[allow(clippy::ref_option)]
fn text<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(cut).serialize(serializer)
}

fn texts<S: Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(None)?;
    for text in texts.iter().take(MAX_LIST) {
        list.serialize_element(&cut(text))?;
    }
    if texts.len() > MAX_LIST {
        list.serialize_element(&format!("[{} more]", texts.len() - MAX_LIST))?;
    }
    list.end()
}

fn display<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn milliseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn record() -> Record {
        let mut record = Record::new(Action::Issue, RequestId(0xab));
        record.namespace = "jobs".to_owned();
        record.pod = "etl-0".to_owned();
        record
    }

    fn line(record: &Record) -> String {
        String::from_utf8(record.line().unwrap()).unwrap()
    }

    #[test]
    fn is_one_json_line_that_says_only_what_is_known() {
        let mut record = record();
        record.granted();
        record.tokens = vec![TokenNumber { sequence_number: 7, max_date: 9 }];
        let line = line(&record);
        let (time, rest) = line.split_once(r#"","action""#).unwrap();
        assert_eq!(
            rest,
            ":\"issue\",\"decision\":\"granted\",\"requestId\":\"00000000000000ab\",\"namespace\":\"jobs\",\
             \"pod\":\"etl-0\",\"tokens\":[{\"sequenceNumber\":7,\"maxDate\":9}]}\n"
        );
        let time = time.strip_prefix(r#"{"time":""#).unwrap();
        assert!(
            time.parse::<Timestamp>().is_ok() && time.len() == "2026-01-01T00:00:00.000Z".len(),
            "{time}"
        );
    }

    #[test]
    fn nothing_in_a_text_begins_a_line_or_steers_a_terminal() {
        let evil =
            "a\n{\"action\":\"issue\"}\r\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}\u{9b}m\0\"\\ ü \u{1f600}";
        let mut record = record();
        record.message = Some(evil.to_owned());
        record.submitter = Some(evil.to_owned());
        record.groups = vec![evil.to_owned()];
        let line = line(&record);
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        assert!(line.trim_end().bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line}");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["message"], evil);
        assert_eq!(read["groups"][0], evil);
    }

    #[test]
    fn texts_and_lists_are_bounded_and_cuts_are_shown() {
        let mut record = record();
        record.message = Some("ü".repeat(MAX_TEXT + 1));
        record.groups = vec!["g".to_owned(); MAX_LIST + 7];
        let read: Value = serde_json::from_str(&line(&record)).unwrap();
        assert_eq!(read["message"], "ü".repeat(MAX_TEXT) + "[cut]");
        let groups = read["groups"].as_array().unwrap();
        assert_eq!((groups.len(), &groups[MAX_LIST]), (MAX_LIST + 1, &Value::from("[7 more]")));
    }

    #[test]
    fn the_namenode_is_told_the_request_before_the_pod() {
        assert_eq!(record().caller_context(), "hadoop-token-csi:00000000000000ab:jobs/etl-0");
    }

    #[test]
    fn what_follows_from_a_call_bears_its_id_and_its_pod() {
        let mut first = record();
        first.granted();
        let next = first.follow_up(Action::Cancel, "NOT_HANDED_OVER");
        assert_eq!(
            (next.action, next.decision, next.why),
            (Action::Cancel, Decision::Failed, Some("NOT_HANDED_OVER"))
        );
        assert_eq!(next.caller_context(), first.caller_context());
    }
}
