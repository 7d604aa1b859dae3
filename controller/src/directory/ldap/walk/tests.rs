use super::*;

fn rules(members: Members, nested: Nested) -> Rules {
    Rules { members, nested, filter: None, name_attribute: "cn".to_owned(), most_groups: 100, most_levels: 5 }
}

const ETL: Member<'_> = Member { name: "etl", dn: "uid=etl,ou=people", gid_number: None };

fn group(name: &str) -> Entry {
    Entry::new(&format!("cn={name},ou=groups"), &[("cn", &[name])])
}

/// Walks over groups that are written as (group, filter part that finds it).
fn walk(rules: &Rules, groups: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let mut walk = Walk::of(ETL, rules);
    while let Some(filter) = walk.next()? {
        ldap3::parse_filter(&filter).unwrap();
        let found = groups.iter().filter(|(_, by)| filter.contains(by));
        walk.take(found.map(|(name, _)| group(name)).collect())?;
    }
    Ok(walk.finish().into_iter().collect())
}

#[test]
fn every_value_in_a_filter_is_escaped() {
    let rules =
        Rules { filter: Some("(objectClass=posixGroup)".to_owned()), ..rules(Members::Both, Nested::Walk) };
    let member = Member { name: "*)(uid=*", dn: r"cn=a\2cb (x),ou=people", gid_number: Some(100) };
    let filter = Walk::of(member, &rules).next().unwrap().unwrap();
    assert_eq!(
        filter,
        r"(&(objectClass=posixGroup)(|(memberUid=\2a\29\28uid=\2a)(&(objectClass=posixGroup)(gidNumber=100))(member=cn=a\5c2cb \28x\29,ou=people)))"
    );
    ldap3::parse_filter(filter).unwrap();
}

#[test]
fn asks_for_members_the_way_groups_name_them() {
    for (members, nested, filter) in [
        (Members::MemberUid, Nested::None, "(memberUid=etl)"),
        (Members::Member, Nested::None, "(member=uid=etl,ou=people)"),
        (Members::Both, Nested::Walk, "(|(memberUid=etl)(member=uid=etl,ou=people))"),
        (Members::Member, Nested::Chain, "(member:1.2.840.113556.1.4.1941:=uid=etl,ou=people)"),
    ] {
        let rules = rules(members, nested);
        let mut walk = Walk::of(ETL, &rules);
        assert_eq!(walk.next(), Ok(Some(filter.to_owned())));
        assert_eq!(walk.next(), Ok(None));
        assert!(walk.finish().is_empty());
    }
}

#[test]
fn groups_of_groups_are_found_upwards_and_circles_end() {
    let groups = [
        ("direct", "(memberUid=etl)"),
        ("parent", "(member=cn=direct,ou=groups)"),
        ("grandparent", "(member=cn=parent,ou=groups)"),
        ("direct", "(member=cn=grandparent,ou=groups)"),
        ("grandparent", "(member=cn=grandparent,ou=groups)"),
        ("stranger", "(memberUid=ads)"),
    ];
    let found = walk(&rules(Members::Both, Nested::Walk), &groups).unwrap();
    assert_eq!(found, ["direct", "grandparent", "parent"]);
    let found = walk(&rules(Members::Both, Nested::None), &groups).unwrap();
    assert_eq!(found, ["direct"]);
}

#[test]
fn more_groups_or_levels_than_allowed_are_an_error_and_no_smaller_answer() {
    let names: Vec<String> = (0..200).map(|number| format!("g{number}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "(memberUid=etl)")).collect();
    assert_eq!(walk(&rules(Members::Both, Nested::None), &many[..100]).unwrap().len(), 100);
    let error = walk(&rules(Members::Both, Nested::None), &many[..101]).unwrap_err();
    assert!(error.contains("more than 100 groups"), "{error}");

    let above: Vec<String> = names.iter().map(|name| format!("(member=cn={name},ou=groups)")).collect();
    let mut deep = vec![("g0", "(memberUid=etl)")];
    deep.extend(names.iter().skip(1).zip(&above).map(|(name, by)| (name.as_str(), by.as_str())));
    assert_eq!(walk(&rules(Members::Both, Nested::Walk), &deep[..5]).unwrap().len(), 5);
    let error = walk(&rules(Members::Both, Nested::Walk), &deep[..6]).unwrap_err();
    assert!(error.contains("more than 5 levels"), "{error}");
}

#[test]
fn a_wide_level_is_asked_about_in_several_searches() {
    let rules = rules(Members::Both, Nested::Walk);
    let mut walk = Walk::of(ETL, &rules);
    walk.next().unwrap();
    walk.take((0..100).map(|number| group(&format!("g{number}"))).collect()).unwrap();
    let mut asked = 0;
    while let Some(filter) = walk.next().unwrap() {
        asked += filter.matches("(member=").count();
        assert!(filter.matches("(member=").count() <= AT_ONCE);
    }
    assert_eq!(asked, 100);
}

#[test]
fn a_group_without_a_name_is_an_error() {
    let rules = rules(Members::Both, Nested::Walk);
    let mut walk = Walk::of(ETL, &rules);
    let error = walk.take(vec![Entry::new("cn=x", &[("gid", &["7"])])]).unwrap_err();
    assert!(error.contains("has no cn"), "{error}");
}
