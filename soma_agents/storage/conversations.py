"""Every message for ever, by tenant and user, with full-text search."""

import re
from collections.abc import Sequence
from datetime import datetime

from arbiters.envelope import as_text
from arbiters.records import ConversationSummary, StoredFeedback, StoredMessage
from soma_agents.storage.database import Database, Row
from soma_agents.storage.sqlite_files import Schema

TITLE_CHARACTERS = 80

_MESSAGE = "id, conversation, role, content, at, trust, inference, model, specialist"
_FOUND = (
    f"SELECT {', '.join(f'messages.{name}' for name in _MESSAGE.split(', '))}"
    " FROM found JOIN messages ON messages.place = found.rowid"
    " WHERE found MATCH ? AND tenant = ? AND user = ?"
)


class SqliteConversationStore:
    """Implements `arbiters.stores.ConversationStore`."""

    schema = Schema(
        "conversations",
        (
            """
            CREATE TABLE conversations (
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                id TEXT NOT NULL,
                source TEXT NOT NULL,
                title TEXT NOT NULL,
                digest TEXT,
                started_at TEXT NOT NULL,
                last_at TEXT NOT NULL,
                messages INTEGER NOT NULL DEFAULT 0,
                PRIMARY KEY (tenant, user, id),
                UNIQUE (tenant, user, digest)
            ) STRICT;
            CREATE INDEX conversations_by_time ON conversations (tenant, user, last_at);
            CREATE TABLE messages (
                place INTEGER PRIMARY KEY,
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                id TEXT NOT NULL,
                conversation TEXT NOT NULL,
                role TEXT NOT NULL,
                content TEXT NOT NULL,
                at TEXT NOT NULL,
                trust TEXT NOT NULL,
                inference TEXT NOT NULL,
                model TEXT NOT NULL,
                specialist TEXT NOT NULL,
                words INTEGER NOT NULL,
                UNIQUE (tenant, user, id)
            ) STRICT;
            CREATE INDEX messages_by_conversation ON messages (tenant, user, conversation, place);
            CREATE INDEX messages_by_inference ON messages (tenant, user, inference)
                WHERE inference <> '';
            CREATE VIRTUAL TABLE found USING fts5 (
                content, content = 'messages', content_rowid = 'place',
                tokenize = 'unicode61 remove_diacritics 0'
            );
            CREATE TRIGGER messages_added AFTER INSERT ON messages BEGIN
                INSERT INTO found (rowid, content) VALUES (new.place, new.content);
            END;
            CREATE TRIGGER messages_gone AFTER DELETE ON messages BEGIN
                INSERT INTO found (found, rowid, content) VALUES ('delete', old.place, old.content);
            END;
            CREATE TABLE feedback (
                place INTEGER PRIMARY KEY,
                tenant TEXT NOT NULL,
                user TEXT NOT NULL,
                id TEXT NOT NULL,
                target TEXT NOT NULL,
                target_kind TEXT NOT NULL,
                name TEXT NOT NULL,
                value ANY NOT NULL,
                source TEXT NOT NULL,
                rationale TEXT NOT NULL,
                at TEXT NOT NULL,
                UNIQUE (tenant, user, id)
            ) STRICT;
            CREATE INDEX feedback_by_target ON feedback (tenant, user, target, place);
            """,
        ),
    )

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- writing ---------------------------------------------------------------------------

    async def add_message(self, tenant: str, user: str, message: StoredMessage) -> bool:
        """See `ConversationStore.add_message`. Opens the conversation if need be."""
        title = message.content.strip()[:TITLE_CHARACTERS] if message.role == "user" else ""
        at = as_text(message.at)
        async with self._database.transaction():
            added = await self._database.execute(
                f"INSERT OR IGNORE INTO messages (tenant, user, {_MESSAGE}, words)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tenant,
                    user,
                    message.id,
                    message.conversation,
                    message.role,
                    message.content,
                    at,
                    message.trust,
                    message.inference,
                    message.model,
                    message.specialist,
                    len(message.content.split()),
                ),
            )
            if not added:
                return False
            await self._database.execute(
                "INSERT INTO conversations (tenant, user, id, source, title, started_at, last_at,"
                " messages) VALUES (?, ?, ?, 'chat', ?, ?, ?, 1) ON CONFLICT (tenant, user, id)"
                " DO UPDATE SET messages = messages + 1, last_at = max(last_at, excluded.last_at)",
                (tenant, user, message.conversation, title, at, at),
            )
        return True

    async def add_conversation(
        self,
        tenant: str,
        user: str,
        conversation: str,
        *,
        source: str,
        title: str,
        digest: str,
        at: datetime,
    ) -> bool:
        """See `ConversationStore.add_conversation`. An empty digest equals no other."""
        added = await self._database.execute(
            "INSERT OR IGNORE INTO conversations (tenant, user, id, source, title, digest,"
            " started_at, last_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (tenant, user, conversation, source, title, digest or None, as_text(at), as_text(at)),
        )
        return added > 0

    async def add_feedback(self, tenant: str, user: str, feedback: StoredFeedback) -> bool:
        """See `ConversationStore.add_feedback`."""
        added = await self._database.execute(
            "INSERT OR IGNORE INTO feedback (tenant, user, id, target, target_kind, name, value,"
            " source, rationale, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                tenant,
                user,
                feedback.id,
                feedback.target,
                feedback.target_kind,
                feedback.name,
                feedback.value,
                feedback.source,
                feedback.rationale,
                as_text(feedback.at),
            ),
        )
        return added > 0

    async def delete(self, tenant: str, user: str, conversation: str) -> bool:
        """See `ConversationStore.delete`."""
        this = (tenant, user, conversation)
        async with self._database.transaction():
            gone = await self._database.execute(
                "DELETE FROM conversations WHERE tenant = ? AND user = ? AND id = ?", this
            )
            await self._database.execute(
                "DELETE FROM feedback WHERE tenant = ?1 AND user = ?2 AND (target = ?3 OR target IN"
                " (SELECT inference FROM messages WHERE tenant = ?1 AND user = ?2"
                " AND conversation = ?3 AND inference <> ''))",
                this,
            )
            await self._database.execute(
                "DELETE FROM messages WHERE tenant = ? AND user = ? AND conversation = ?", this
            )
            if gone:
                # The index keeps deleted words in its segments until they are merged.
                await self._database.execute("INSERT INTO found (found) VALUES ('optimize')")
        return gone > 0

    # --- reading ---------------------------------------------------------------------------

    async def messages(
        self,
        tenant: str,
        user: str,
        conversation: str,
        *,
        limit: int = 200,
        before: str | None = None,
    ) -> list[StoredMessage]:
        """See `ConversationStore.messages`."""
        earlier, parameters = "", [tenant, user, conversation]
        if before is not None:
            earlier = (
                "AND place < (SELECT place FROM messages"
                " WHERE tenant = ?1 AND user = ?2 AND conversation = ?3 AND id = ?4)"
            )
            parameters.append(before)
        rows = await self._database.rows(
            f"SELECT {_MESSAGE} FROM messages WHERE tenant = ?1 AND user = ?2"
            f" AND conversation = ?3 {earlier} ORDER BY place DESC LIMIT {int(limit)}",
            parameters,
        )
        return [_message(row) for row in reversed(rows)]

    async def conversations(
        self, tenant: str, user: str, *, limit: int = 50, offset: int = 0
    ) -> list[ConversationSummary]:
        """See `ConversationStore.conversations`."""
        rows = await self._database.rows(
            "SELECT id, title, source, messages, started_at, last_at FROM conversations"
            " WHERE tenant = ? AND user = ? ORDER BY last_at DESC, rowid DESC LIMIT ? OFFSET ?",
            (tenant, user, limit, offset),
        )
        return [_summary(row) for row in rows]

    async def search(
        self, tenant: str, user: str, words: str, *, limit: int = 20
    ) -> list[StoredMessage]:
        """See `ConversationStore.search`. Nothing in `words` is an operator."""
        wanted = re.findall(r"\w+", words)
        if not wanted:
            return []
        rows = await self._database.rows(
            f"{_FOUND} ORDER BY bm25(found), place LIMIT ?",
            (" ".join(f'"{word}"' for word in wanted), tenant, user, limit),
        )
        return [_message(row) for row in rows]

    async def mentions(
        self, tenant: str, user: str, beginnings: Sequence[str], *, apart_from: str, limit: int = 20
    ) -> list[StoredMessage]:
        """See `ConversationStore.mentions`."""
        wanted = re.findall(r"\w+", " ".join(beginnings))
        if not wanted:
            return []
        rows = await self._database.rows(
            f"{_FOUND} AND role = 'user' AND trust = 'owner' AND conversation <> ?"
            " ORDER BY bm25(found), place LIMIT ?",
            (" OR ".join(f'"{word}" *' for word in wanted), tenant, user, apart_from, limit),
        )
        return [_message(row) for row in rows]

    async def newest(self, tenant: str, user: str, *, limit: int) -> list[StoredMessage]:
        """See `ConversationStore.newest`."""
        rows = await self._database.rows(
            f"SELECT {_MESSAGE} FROM messages WHERE place IN (SELECT place FROM messages"
            " WHERE tenant = ? AND user = ? ORDER BY place DESC LIMIT ?) ORDER BY place DESC",
            (tenant, user, limit),
        )
        return [_message(row) for row in rows]

    async def feedback(self, tenant: str, user: str, target: str) -> list[StoredFeedback]:
        """See `ConversationStore.feedback`."""
        rows = await self._database.rows(
            "SELECT id, target, target_kind, name, value, source, rationale, at FROM feedback"
            " WHERE tenant = ? AND user = ? AND target = ? ORDER BY place",
            (tenant, user, target),
        )
        return [StoredFeedback(*row[:-1], at=datetime.fromisoformat(row[-1])) for row in rows]

    async def inference(self, tenant: str, user: str, inference: str) -> StoredMessage | None:
        """See `ConversationStore.inference`."""
        row = await self._database.row(
            f"SELECT {_MESSAGE} FROM messages"
            " WHERE tenant = ? AND user = ? AND inference = ? AND inference <> ''",
            (tenant, user, inference),
        )
        return _message(row) if row else None

    async def statistics(self, tenant: str, user: str) -> dict[str, int]:
        """See `ConversationStore.statistics`."""
        row = await self._database.row(
            """
            SELECT (SELECT count(*) FROM conversations WHERE tenant = ?1 AND user = ?2),
                count(*), coalesce(sum(words), 0),
                (SELECT count(*) FROM feedback WHERE tenant = ?1 AND user = ?2),
                count(*) FILTER (WHERE role = 'system'), count(*) FILTER (WHERE role = 'user'),
                count(*) FILTER (WHERE role = 'assistant')
            FROM messages WHERE tenant = ?1 AND user = ?2
            """,
            (tenant, user),
        )
        names = ("conversations", "messages", "words", "feedback", "system", "user", "assistant")
        return dict(zip(names, row or (0,) * len(names), strict=True))


def _message(row: Row) -> StoredMessage:
    identity, conversation, role, content, at, *rest = row
    return StoredMessage(identity, conversation, role, content, datetime.fromisoformat(at), *rest)


def _summary(row: Row) -> ConversationSummary:
    identity, title, source, messages, started_at, last_at = row
    return ConversationSummary(
        id=identity,
        title=title,
        source=source,
        messages=messages,
        started_at=datetime.fromisoformat(started_at),
        last_at=datetime.fromisoformat(last_at),
    )
