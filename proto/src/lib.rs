//! Everything that crosses a socket between kubelet, the node plugin and the controller. No I/O. The words that all
//! of them share are in `identity`.

mod redact;

pub use identity::{
    CLUSTER_ATTRIBUTE, CONTROLLER_AUDIENCE, DO_AS_ATTRIBUTE, DRIVER_NAME, ERROR_DOMAIN, POD_AUDIENCE,
    VOLUME_ATTRIBUTES, VolumeId,
};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::restriction)]
mod generated {
    pub mod csi {
        tonic::include_proto!("csi.v1");
    }
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
    pub mod token {
        tonic::include_proto!("hadoop_token_csi.token.v1");
    }
}

/// Container Storage Interface, version 1.
pub mod csi {
    /// `csi.v1`: Identity and Node services.
    pub mod v1 {
        pub use crate::generated::csi::*;
    }
}

/// kubelet's plugin registration.
pub mod registration {
    /// `pluginregistration`: messages only.
    pub mod v1 {
        pub use crate::generated::registration::*;
    }
}

/// Our token service.
pub mod token {
    /// `hadoop_token_csi.token.v1`.
    pub mod v1 {
        pub use crate::generated::token::*;
    }
}
