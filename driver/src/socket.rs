//! A Unix socket that only root can call, as both of ours are. It listens under a hidden name and appears under its
//! own only when [`Socket::announce`]d, whole and with its mode set; a socket that another process serves is never
//! taken away.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    hidden: PathBuf,
    path: PathBuf,
    announced: bool,
}

impl Socket {
    /// Listens for what will be announced as `path`. A file left there by a process that is gone is replaced then.
    ///
    /// # Errors
    /// When another process serves `path`, when something that is no socket is there, or when the system refuses.
    pub(crate) fn bind(path: &Path) -> Result<Self, BindError> {
        let error = |source| BindError { path: path.to_owned(), source };
        refuse_taken(path).map_err(error)?;
        let hidden = hidden(path).ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
        match fs::remove_file(&hidden) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&hidden).map_err(error)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(error)?;
        Ok(Self { listener, hidden, path: path.to_owned(), announced: false })
    }

    /// Makes the socket appear. Callers may have to wait until [`Socket::accept`] is called.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn announce(&mut self) -> Result<(), BindError> {
        let renamed = fs::rename(&self.hidden, &self.path);
        renamed.map_err(|source| BindError { path: self.path.clone(), source })?;
        self.announced = true;
        Ok(())
    }

    /// The next connection of root. Others are dropped.
    ///
    /// # Errors
    /// When the system refuses to accept.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 => return Ok(stream),
                Ok(peer) => {
                    warn!(socket = %self.path.display(), uid = peer.uid(), "Refused a caller that is not root")
                }
                Err(error) => {
                    warn!(socket = %self.path.display(), %error, "Refused a caller that cannot be identified")
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let file = if self.announced { &self.path } else { &self.hidden };
        if let Err(error) = fs::remove_file(file) {
            warn!(socket = %file.display(), %error, "Failed to remove socket");
        }
    }
}

fn hidden(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    Some(path.with_file_name(name))
}

fn refuse_taken(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it")),
    }
}

/// A socket that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}", path = path.display())]
pub(crate) struct BindError {
    path: PathBuf,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn appears_only_when_announced_and_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let mut socket = Socket::bind(&path).unwrap();
        assert!(!path.exists());
        socket.announce().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (accepted, connected) = tokio::join!(socket.accept(), UnixStream::connect(&path));
        accepted.unwrap();
        connected.unwrap();
    }

    #[tokio::test]
    async fn goes_away_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(Socket::bind(&path).unwrap());
        let mut socket = Socket::bind(&path).unwrap();
        socket.announce().unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn replaces_what_a_dead_process_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let mut socket = Socket::bind(&path).unwrap();
        socket.announce().unwrap();
        let (accepted, connected) = tokio::join!(socket.accept(), UnixStream::connect(&path));
        accepted.unwrap();
        connected.unwrap();
    }

    #[tokio::test]
    async fn leaves_a_socket_that_is_served_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(other);
    }

    #[tokio::test]
    async fn leaves_a_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        assert!(Socket::bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
