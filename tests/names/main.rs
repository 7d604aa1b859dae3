//! Short names: Hadoop's own class and ours are given the same rules and principals. Needs Hadoop's jars and Java, but
//! no bed.

mod corpus;

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bed::{
    process::Program,
    progress::say,
    provision::{self, Tools},
};
use hadoop::auth_to_local::{NoName, Problem, Rules};

use corpus::Case;
use tempfile::TempDir;

/// How many lists of rules come from the grammar.
const RANDOM: usize = 10_000;

/// What came of it all.
#[derive(Default)]
struct Tally {
    /// Principals that both gave the same name, or both refused.
    named: usize,
    refused: usize,
    /// Lists of rules that both take, that both refuse, and that only we refuse, by kind.
    lists: usize,
    refused_lists: usize,
    refused_here: BTreeMap<String, usize>,
    differences: Vec<String>,
}

#[test]
fn every_name_is_the_one_that_hadoop_gives() -> Result<()> {
    let cases = corpus::cases(RANDOM);
    let answers = tokio::runtime::Runtime::new()?.block_on(ask_hadoop(&cases))?;
    let mut answers = answers.lines();
    let mut tally = Tally::default();
    for case in &cases {
        compare(case, &mut answers, &mut tally)?;
    }
    ensure!(answers.next().is_none(), "Hadoop answered more than it was asked");
    let Tally { named, refused, lists, refused_lists, refused_here, differences } = tally;
    say(format_args!(
        "{lists} lists of rules taken by both, {refused_lists} refused by both; {named} names the same, {refused} \
         principals refused by both; lists refused here alone: {refused_here:?}"
    ));
    ensure!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n")
    );
    // The rest of the lists has a mistake somewhere, and so have many principals: that is what they are for.
    ensure!(lists > RANDOM / 2 && named > 2 * RANDOM && refused > 2 * RANDOM, "too little was compared");
    Ok(())
}

/// Answers to each list of rules and each principal, one a line.
async fn ask_hadoop(cases: &[Case]) -> Result<String> {
    provision::prepare().await?;
    let tools = Tools::find()?;
    let folder = TempDir::new()?;
    let (questions, answers) = (folder.path().join("questions"), folder.path().join("answers"));
    let mut text = String::new();
    for Case { default_realm, rules, principals } in cases {
        let word = |text: &str| BASE64_STANDARD.encode(text);
        text += &format!("rules {} {}\n", word(default_realm), word(rules));
        for principal in principals {
            text += &format!("name {}\n", word(principal));
        }
    }
    fs::write(&questions, text)?;
    Program::new(tools.java_home.join("bin/java"))
        .args(["-XX:-UsePerfData", "-cp"])
        .arg(format!("{}/*", tools.hadoop.display()))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/names/ShortNames.java"))
        .arg(&questions)
        .arg(&answers)
        .succeed()
        .await?;
    fs::read_to_string(answers).context("Hadoop did not answer")
}

fn compare<'a>(case: &Case, answers: &mut impl Iterator<Item = &'a str>, tally: &mut Tally) -> Result<()> {
    let Case { default_realm, rules: text, principals } = case;
    let realm = Some(*default_realm).filter(|realm| !realm.is_empty());
    let rules = Rules::parse(text, realm);
    let theirs = answer(answers)?;
    match (&rules, &theirs) {
        (Ok(_), Ok(_)) => tally.lists += 1,
        (Err(_), Err(_)) => tally.refused_lists += 1,
        (Err(refused), Ok(_)) => *tally.refused_here.entry(kind(&refused.problem)).or_default() += 1,
        (Ok(_), Err(why)) => tally.differences.push(format!("{text:?}: taken here, but Hadoop: {why}")),
    }
    for principal in principals {
        let theirs = answer(answers)?;
        let Ok(rules) = &rules else { continue };
        match (rules.short_name(principal), &theirs) {
            (Ok(ours), Ok(theirs)) if ours == *theirs => tally.named += 1,
            (Err(NoName::Characters), _) => bail!("{principal:?} cannot be compared"),
            (Err(_), Err(_)) => tally.refused += 1,
            (ours, _) => tally.differences.push(format!(
                "{text:?} with {default_realm:?} of {principal:?}: here {ours:?}, Hadoop {theirs:?}"
            )),
        }
    }
    Ok(())
}

/// What Hadoop gave, or why it refused.
fn answer<'a>(answers: &mut impl Iterator<Item = &'a str>) -> Result<Result<String, String>> {
    let line = answers.next().context("Hadoop answered less than it was asked")?;
    let (verdict, word) = line.split_once(' ').context("no answer")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(word)?)?;
    match verdict {
        "ok" => Ok(Ok(text)),
        "refused" => Ok(Err(text)),
        other => bail!("Hadoop's answer is {other:?}"),
    }
}

/// The name of the reason, without what it says about this very rule.
fn kind(problem: &Problem) -> String {
    let text = match problem {
        Problem::Filter(why) | Problem::From(why) => format!("{why:?}"),
        Problem::To(why) => format!("{why:?}"),
        other => format!("{other:?}"),
    };
    text.chars().take_while(|c| c.is_ascii_alphabetic()).collect()
}
