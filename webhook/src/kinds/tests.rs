use serde_json::json;

use super::*;

#[test]
fn a_pod_is_a_carrier_itself() {
    let kinds = Kinds::default();
    let kind = kinds.of_resource("", "pods").expect("is a kind");
    assert!(kind.is_pod());
    let pod =
        json!({"metadata": {}, "spec": {"volumes": [{"name": "t", "csi": {"driver": "hadoop-token.csi"}}]}});
    let found = kind.carriers(&pod);
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(found.annotations.as_str(), "/metadata/annotations");
    assert!(found.involves_token());
    assert!(!kind.involves_token(&json!({"metadata": null, "spec": {"volumes": [null, 5, {"csi": []}]}})));
}
