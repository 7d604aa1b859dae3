//! `hdfs-client`: reads and writes in HDFS through the hdfs-native crate, which shares no code with Java's client
//! nor with ours. In a pod it is given nothing but a token file (`HADOOP_TOKEN_FILE_LOCATION`); on the test bed it
//! also prepares home folders from a keytab. Never prints credentials.

use std::{
    io::{Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use hdfs_native::{Client, ClientBuilder, WriteOptions};

/// Reads and writes in HDFS.
#[derive(Parser, Debug)]
struct Args {
    /// The file system: `hdfs://HOST:PORT`.
    #[arg(long)]
    url: String,
    /// Kerberos principal to be; without it, the token file is all there is.
    #[arg(long, requires = "keytab")]
    principal: Option<String>,
    /// Its keytab.
    #[arg(long, requires = "principal")]
    keytab: Option<PathBuf>,
    /// User to act for, as a proxy user.
    #[arg(long = "as", requires = "principal")]
    user: Option<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Prints a file.
    Cat {
        /// The file.
        path: String,
    },
    /// Prints the names in a folder.
    Ls {
        /// The folder.
        path: String,
    },
    /// Makes a user's home folder, which nobody else may enter, with one file in it.
    Home {
        /// The folder.
        path: String,
        /// Who it is for.
        #[arg(long)]
        owner: String,
        /// Name of the file.
        #[arg(long)]
        file: String,
        /// What the file holds.
        #[arg(long)]
        content: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody left to read it changes nothing.
            let _ = writeln!(stderr(), "hdfs-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let client = client(args)?;
    match &args.action {
        Action::Cat { path } => {
            let mut file = client.read(path).await.with_context(|| format!("failed to open {path}"))?;
            let bytes = file
                .read_bytes(file.file_length())
                .await
                .with_context(|| format!("failed to read {path}"))?;
            stdout().write_all(&bytes)?;
        }
        Action::Ls { path } => {
            for entry in
                client.list_status(path, false).await.with_context(|| format!("failed to list {path}"))?
            {
                writeln!(stdout(), "{}", entry.path)?;
            }
        }
        Action::Home { path, owner, file, content } => {
            home(&client, path, owner, &format!("{path}/{file}"), content)
                .await
                .with_context(|| format!("failed to make {path}"))?;
        }
    }
    Ok(())
}

fn client(args: &Args) -> Result<Client> {
    let mut builder = ClientBuilder::new()
        .with_url(args.url.as_str())
        // Otherwise it tries a dead NameNode for minutes.
        .with_config([
            ("hadoop.security.authentication", "kerberos"),
            ("dfs.client.failover.max.attempts", "2"),
        ]);
    if let Some(principal) = &args.principal {
        builder = builder.with_kerberos_principal(principal.as_str());
    }
    if let Some(keytab) = &args.keytab {
        builder = builder.with_kerberos_keytab(keytab.display().to_string());
    }
    if let Some(user) = &args.user {
        builder = builder.with_user(user.as_str());
    }
    builder.build().with_context(|| format!("failed to make a client of {}", args.url))
}

async fn home(client: &Client, path: &str, owner: &str, file: &str, content: &str) -> Result<()> {
    client.mkdirs(path, 0o755, true).await?;
    let mut writer = client.create(file, WriteOptions::default().replication(1)).await?;
    writer.write_bytes(Bytes::from(content.to_owned())).await?;
    writer.close().await?;
    for (path, mode) in [(file, 0o600), (path, 0o700)] {
        client.set_owner(path, Some(owner), Some(owner)).await?;
        client.set_permission(path, mode).await?;
    }
    Ok(())
}
