//! `Debug` for the messages that carry secrets: every field that may hold one is shown only by its length.

use std::fmt;

use crate::{csi, token};

struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} hidden]", self.0)
    }
}

impl fmt::Debug for csi::v1::NodePublishVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePublishVolumeRequest")
            .field("volume_id", &self.volume_id)
            .field("target_path", &self.target_path)
            .field("volume_capability", &self.volume_capability)
            .field("readonly", &self.readonly)
            .field("secrets", &Hidden(self.secrets.len()))
            .field("volume_context", &self.volume_context.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for token::v1::Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("identifier", &Hidden(self.identifier.len()))
            .field("password", &Hidden(self.password.len()))
            .field("kind", &self.kind)
            .field("services", &self.services)
            .finish()
    }
}

impl fmt::Debug for token::v1::IssueRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueRequest")
            .field("volume", &self.volume)
            .field("pod_token", &Hidden(self.pod_token.len()))
            .field("addresses", &self.addresses)
            .field("held", &self.held.len())
            .finish()
    }
}

impl fmt::Debug for token::v1::CheckRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckRequest")
            .field("volume", &self.volume)
            .field("pod_token", &Hidden(self.pod_token.len()))
            .field("cluster", &self.cluster)
            .field("tokens", &self.tokens.len())
            .field("addresses", &self.addresses)
            .finish()
    }
}

impl fmt::Debug for token::v1::Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewal")
            .field("volume", &self.volume)
            .field("pod_token", &Hidden(self.pod_token.len()))
            .field("cluster", &self.cluster)
            .field("tokens", &self.tokens)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_secret() {
        let publish = csi::v1::NodePublishVolumeRequest {
            secrets: [("key".to_owned(), "s3cret".to_owned())].into(),
            volume_context: [("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), "s3cret".to_owned())]
                .into(),
            publish_context: [("key".to_owned(), "s3cret".to_owned())].into(),
            ..Default::default()
        };
        let token = token::v1::Token { password: b"s3cret".to_vec(), ..Default::default() };
        let issue = token::v1::IssueRequest { pod_token: "s3cret".to_owned(), ..Default::default() };
        let check = token::v1::CheckRequest { pod_token: "s3cret".to_owned(), ..Default::default() };
        let renew = token::v1::Renewal {
            pod_token: "s3cret".to_owned(),
            tokens: vec![token.clone()],
            ..Default::default()
        };
        let bytes = format!("{:?}", b"s3cret");
        for shown in [
            format!("{publish:?}"),
            format!("{token:?}"),
            format!("{issue:?}"),
            format!("{renew:?}"),
            format!("{check:?}"),
        ] {
            assert!(!shown.contains("s3cret") && !shown.contains(&bytes), "{shown}");
        }
    }
}
