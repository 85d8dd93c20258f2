//! The OpenAPI document and the pages that show it.

use crate::harness::Server;

#[test]
fn the_document_is_served_as_json_and_as_the_committed_yaml() {
    let server = Server::start(&["tiny-classifier"]);
    let json = server.get_json("/openapi.json").json;
    assert!(json["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in [
        "/v1/classify",
        "/v1/zero-shot",
        "/v1/models",
        "/v1/models/{name}",
        "/livez",
        "/readyz",
        "/readyz/{model}",
        "/health",
        "/metrics",
    ] {
        assert!(json["paths"][path].is_object(), "{path} is not described");
    }
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
    assert_eq!(server.get("/openapi.yaml").send().unwrap().text().unwrap(), committed);
}

#[test]
fn the_interactive_documentation_needs_no_other_host() {
    let server = Server::start(&["tiny-classifier"]);
    let page = server.get("/docs/").send().unwrap();
    assert_eq!(page.status(), 200);
    let page = page.text().unwrap();
    assert!(page.contains("swagger-ui"), "{page}");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page loads from elsewhere:\n{page}");
    let script = server.get("/docs/swagger-ui-bundle.js").send().unwrap();
    assert!(script.status() == 200 && script.text().unwrap().len() > 100_000);
}
