//! Promises of the key file: it is followed while the program runs, and a bad one never replaces a good one.

use identity::seal::{JwkSet, SealingKey};
use tempfile::TempDir;

use super::*;

struct Bench {
    _folder: TempDir,
    file: PathBuf,
}

impl Bench {
    fn with(keys: &[&SealingKey]) -> Self {
        let folder = TempDir::new().unwrap();
        let bench = Self { file: folder.path().join("keys.json"), _folder: folder };
        bench.write(keys);
        bench
    }

    fn write(&self, keys: &[&SealingKey]) {
        let set = JwkSet { keys: keys.iter().map(|key| key.public_jwk()).collect() };
        fs::write(&self.file, set.to_json()).unwrap();
    }

    fn load(&self) -> Arc<SealKeys> {
        Arc::new(SealKeys::load(self.file.clone()).unwrap())
    }
}

fn ids(keys: &SealKeys) -> Vec<String> {
    keys.now().ids().map(str::to_owned).collect()
}

#[test]
fn refuses_to_start_without_keys_and_says_which_file() {
    let missing = SealKeys::load("/nowhere/keys.json".into()).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/keys.json"), "{missing}");
    let bench = Bench::with(&[]);
    let empty = SealKeys::load(bench.file.clone()).unwrap_err().to_string();
    assert!(empty.contains("keys.json") && empty.contains("no key"), "{empty}");
}

#[tokio::test(start_paused = true)]
async fn follows_an_exchange_of_keys_while_it_runs() {
    let (old, new) = (SealingKey::generate().with_id("1"), SealingKey::generate().with_id("2"));
    let bench = Bench::with(&[&old]);
    let keys = bench.load();
    let stop = CancellationToken::new();
    let task = tokio::spawn(keys.clone().keep_fresh(stop.clone()));
    assert_eq!(ids(&keys), ["1"]);
    for (published, expected) in [(vec![&old, &new], vec!["1", "2"]), (vec![&new], vec!["2"])] {
        bench.write(&published);
        tokio::time::sleep(RELOAD_INTERVAL + Duration::from_secs(1)).await;
        assert_eq!(ids(&keys), expected);
    }
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_used_leaves_the_keys_in_place() {
    let bench = Bench::with(&[&SealingKey::generate().with_id("1")]);
    let keys = bench.load();
    tokio::spawn(keys.clone().keep_fresh(CancellationToken::new()));
    let spoil: [fn(&Path); 4] = [
        |file| fs::write(file, "{\"keys\": [").unwrap(),
        |file| fs::write(file, "").unwrap(),
        |file| fs::write(file, "{\"keys\": []}").unwrap(),
        |file| fs::remove_file(file).unwrap(),
    ];
    for spoil in spoil {
        spoil(&bench.file);
        tokio::time::sleep(RELOAD_INTERVAL + Duration::from_secs(1)).await;
        assert_eq!(ids(&keys), ["1"]);
    }
    bench.write(&[&SealingKey::generate().with_id("2")]);
    tokio::time::sleep(RELOAD_INTERVAL + Duration::from_secs(1)).await;
    assert_eq!(ids(&keys), ["2"]);
}
