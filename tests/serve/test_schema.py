"""Schemathesis: requests that fit the OpenAPI document, and such that do not."""

import json

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks

COMMON = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
MODES = {
    "fitting": (GenerationMode.POSITIVE, COMMON),
    "unfit": (GenerationMode.NEGATIVE, [*COMMON, checks.negative_data_rejection]),
}
OPERATIONS = {
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /status",
    "GET /metrics",
}


def statuses(operation, mode):
    """Ask what `operation` takes, or what it does not; check the answers; return their statuses."""
    generation, expected = MODES[mode]
    seen = []

    @settings(
        max_examples=20 if operation.body else 3,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=generation))
    def probe(case):
        if mode == "fitting" and isinstance(case.body, dict):
            case.body |= {"model": "tiny", "max_tokens": 2}  # or each would be a 404
        response = case.call(timeout=60)
        seen.append(response.status_code)
        case.validate_response(response, checks=expected)

    probe()
    return seen


def test_what_fits_the_document_is_answered_as_it_says(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.label for operation in operations} == OPERATIONS
    for operation in operations:
        seen = statuses(operation, "fitting")
        assert 200 in seen or operation.path_parameters
    assert server.idle()


def test_what_does_not_fit_is_refused(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in operations:
        if operation.body:
            # 404 where the model that was made up is looked for first.
            assert set(statuses(operation, "unfit")) <= {400, 404, 405, 415}
    assert server.idle()


def test_the_document_is_json_and_names_what_errors_look_like(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json").raw_schema
    assert json.dumps(schema)
    for path in ("/v1/chat/completions", "/v1/completions"):
        refused = schema["paths"][path]["post"]["responses"]["4XX"]["content"]
        assert refused["application/json"]["schema"]["$ref"].endswith("ErrorBody")
