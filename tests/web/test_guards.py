"""Who may come in, how large and how often a request may be, and what broken ones get."""

import asyncio

import httpx2
import pytest
import structlog

from arbiters.errors import InvalidError, StorageFullError, UnavailableError

CHAT = {"model": "soma", "messages": [{"role": "user", "content": "Hello"}]}
JSON = {"Content-Type": "application/json"}


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


# --- keys ----------------------------------------------------------------------------------


async def test_without_keys_everyone_on_this_machine_is_the_owner(soma):
    assert (await soma.chat("Hello")).status_code == 200


async def test_with_a_key_nobody_comes_in_without_one(soma):
    secret = soma.services.keys.create("ada", user="ada", role="admin")

    bare = await soma.http.post("/v1/chat/completions", json=CHAT)
    wrong = await soma.http.post("/v1/chat/completions", json=CHAT, headers=bearer("soma-wrong"))
    right = await soma.http.post("/v1/chat/completions", json=CHAT, headers=bearer(secret))

    assert [bare.status_code, wrong.status_code, right.status_code] == [401, 401, 200]
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    assert [e.user for e in await soma.events("MessageReceived")] == ["ada"]


async def test_a_revoked_key_is_useless_at_once(soma):
    soma.services.keys.create("keeper", role="admin")
    secret = soma.services.keys.create("ada", user="ada")
    assert (await soma.http.get("/v1/models", headers=bearer(secret))).status_code == 200

    soma.services.keys.revoke("ada")

    assert (await soma.http.get("/v1/models", headers=bearer(secret))).status_code == 401


async def test_only_admins_promote_train_and_see_events(soma):
    secret = soma.services.keys.create("ada", user="ada")

    for method, path in [
        ("POST", "/api/models/soma-v0/promote"),
        ("POST", "/api/models/rollback"),
        ("POST", "/api/training/rounds"),
        ("GET", "/api/events"),
        ("GET", "/api/dead-letters"),
    ]:
        answer = await soma.http.request(method, path, headers=bearer(secret))
        assert answer.status_code == 403, path
        assert answer.json()["error"]["type"] == "permission_error"


async def test_users_do_not_see_each_other(soma):
    ada, eve = (soma.services.keys.create(name, user=name) for name in ("ada", "eve"))
    said = await soma.http.post("/api/reason", json={"message": "Hi"}, headers=bearer(ada))
    conversation, inference = said.json()["conversation"], said.json()["inference"]

    for answer in (
        await soma.http.get(
            f"/api/conversation/history?conversation={conversation}", headers=bearer(eve)
        ),
        await soma.http.post(
            "/api/reason",
            json={"message": "Go on", "conversation": conversation},
            headers=bearer(eve),
        ),
        await soma.http.post(
            "/feedback",
            json={"target": inference, "name": "rating", "value": 1},
            headers=bearer(eve),
        ),
        await soma.http.delete(f"/api/conversation/{conversation}", headers=bearer(eve)),
    ):
        assert answer.status_code == 404


async def test_the_command_line_comes_in_with_the_token_in_the_data_directory(soma):
    soma.services.keys.create("ada", user="ada")
    token = soma.services.settings.home / "run" / "cli_token"
    token.parent.mkdir(exist_ok=True)
    token.write_text("a-token-of-the-owner\n")

    answer = await soma.http.get("/api/events", headers=bearer("a-token-of-the-owner"))

    assert answer.status_code == 200


async def test_open_to_others_without_a_key_it_does_not_start(soma_with):
    with pytest.raises(InvalidError, match=r"soma keys create"):
        async with soma_with(server={"host": "0.0.0.0"}):  # noqa: S104
            pass


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}]
)
async def test_a_web_page_from_elsewhere_is_not_the_owner(soma, headers):
    answer = await soma.http.post("/v1/chat/completions", json=CHAT, headers=headers)

    assert answer.status_code == 401


# --- sizes and rates -----------------------------------------------------------------------


async def test_a_body_of_ten_megabytes_is_refused_over_a_socket(url):
    body = b'{"messages": "' + b"x" * 10_000_000 + b'"}'

    async def chunks():
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    async with httpx2.AsyncClient() as http:
        whole = await http.post(f"{url}/v1/chat/completions", content=body, headers=JSON)
        chunked = await http.post(f"{url}/v1/chat/completions", content=chunks(), headers=JSON)

    assert [whole.status_code, chunked.status_code] == [413, 413]
    assert whole.json()["error"]["code"] == "request_too_large"


async def test_whoever_asks_too_often_is_told_when_to_come_back(soma_with):
    async with soma_with(server={"requests_per_minute": 12}) as soma:
        answers = [await soma.http.get("/v1/models") for _ in range(4)]
        health = await soma.http.get("/healthz")

    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 6
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"
    assert health.status_code == 200


async def test_more_requests_than_may_wait_are_refused(soma_with):
    limits = {"server": {"max_waiting": 1}, "engine": {"slots": 1}}
    async with soma_with(**limits) as soma:
        soma.engine.hold = asyncio.Semaphore(0)
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(soma.chat("Hello")) for _ in range(2)]
            await soma.runtime.log.read(1, types=frozenset({"MessageReceived"}), wait=10)
            refused = await soma.chat("Hello")
            for _ in range(20):
                soma.engine.hold.release()

    assert refused.status_code == 429
    assert refused.headers["Retry-After"]
    assert [task.result().status_code for task in waiting] == [200, 200]


async def test_whoever_asks_for_everything_does_not_keep_others_out(soma_with):
    limits = {"server": {"max_waiting": 9}, "engine": {"slots": 1}}
    async with soma_with(**limits) as soma:
        busy, other = (bearer(soma.services.keys.create(name, user=name)) for name in ("a", "b"))
        soma.engine.hold = asyncio.Semaphore(0)

        def ask(headers):
            return soma.http.post("/v1/chat/completions", json=CHAT, headers=headers)

        async with asyncio.TaskGroup() as group:
            held = [group.create_task(ask(busy)) for _ in range(8)]
            await soma.engine.asked_often(len(held))
            refused = await ask(busy)
            let_in = group.create_task(ask(other))
            await soma.engine.asked_often(len(held) + 1)
            for _ in range(100):
                soma.engine.hold.release()

    assert refused.status_code == 429
    assert let_in.result().status_code == 200


# --- broken requests -----------------------------------------------------------------------


async def test_unknown_paths_and_methods_are_errors_in_the_same_shape(soma):
    missing, wrong = await soma.http.get("/v2/chat"), await soma.http.get("/feedback")

    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"]["message"] == "there is no GET /v2/chat; see /docs"
    assert wrong.json()["error"]["type"] == "invalid_request_error"


# --- storage and parts that are away -------------------------------------------------------


async def test_a_full_disk_answers_507_and_reads_go_on(soma, monkeypatch):
    async def full(_):
        raise StorageFullError("the disk is full; free some space")

    monkeypatch.setattr(soma.runtime.log, "append", full)

    answer = await soma.chat("Hello")

    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "storage_full"
    assert "choices" not in answer.json()
    assert (await soma.http.get("/api/conversation/list")).status_code == 200


async def test_a_chat_goes_on_when_the_profile_is_away(soma, monkeypatch):
    async def away(arbiter, _, **__):
        raise UnavailableError(f"{arbiter} is restarting; ask again")

    monkeypatch.setattr(soma.runtime.directory, "ask", away)

    assert (await soma.chat("Hello")).status_code == 200
    listed = await soma.http.get("/api/conversation/list")
    assert listed.status_code == 503
    assert listed.headers["Retry-After"]


async def test_the_logs_never_tell_what_was_said(soma):
    with structlog.testing.capture_logs() as lines:
        soma.engine.reason = "error"
        await soma.chat("My password is hunter2")
        await soma.http.post("/api/reason", json={"message": "hunter2", "conversation": "none"})

    assert "hunter2" not in repr(lines)
