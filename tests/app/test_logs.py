import json
import logging

import pytest
import structlog

from soma_agents.app import logs
from soma_agents.settings import load_settings


@pytest.fixture(autouse=True)
def _logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(home, process):
    text = (home / "logs" / f"{process}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_each_process_writes_json_lines_of_its_own(tmp_path):
    logs.setup(load_settings(tmp_path, environ={}), "bus")

    structlog.get_logger("x").info("opened", offset=3)
    logging.getLogger("library").warning("careful")

    opened, careful = lines(tmp_path, "bus")
    assert (opened["event"], opened["offset"], opened["process"]) == ("opened", 3, "bus")
    assert (careful["event"], careful["level"]) == ("careful", "warning")


@pytest.mark.parametrize(("setting", "kept"), [("false", False), ("true", True)])
def test_what_people_wrote_is_logged_only_where_the_owner_wants_it(tmp_path, setting, kept):
    settings = load_settings(tmp_path, environ={"SOMA_PRIVACY__LOG_CONTENT": setting})
    logs.setup(settings, "gateway")

    structlog.get_logger("x").info("received", content="my secret", message="m1")

    (line,) = lines(tmp_path, "gateway")
    assert ("my secret" in json.dumps(line)) is kept
    assert line["message"] == "m1"


def test_a_failure_is_logged_with_where_it_happened(tmp_path):
    logs.preparer(load_settings(tmp_path, environ={}))("keeper")

    try:
        int("three")
    except ValueError:
        structlog.get_logger("x").exception("it failed")

    (line,) = lines(tmp_path, "keeper")
    assert "ValueError: invalid literal" in line["exception"]
