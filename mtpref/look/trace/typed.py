"""From JSON values to event objects, by the types that mtpref/base/events.py declares.

Owns the check of every field. The event classes are the only list of fields: one that is added there is read here.
"""

from typing import Any

from mtpref.base import events
from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Event, RunStarted, Verified
from mtpref.base.typed import describe, read_fields

EVENTS: dict[str, type] = {cls.__name__: cls for cls in Event.__args__}


def from_json(record: Any) -> Event | None:
    """The event that `events.to_json` made the record of; None for one of a name that is not known here.

    Rule    fields that are not known are ignored; one that has a default may be missing
    Errors  MtprefError for whatever is not an event: a missing field, a wrong type, bytes that are no hex, a schema
            that is not events.SCHEMA, lists of one round that do not fit together
    """
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise MtprefError(f'{describe(record)} is no event, expected an object with "event": a name')
    cls = EVENTS.get(record["event"])
    if cls is None:
        return None
    if cls is RunStarted and record.get("schema") != events.SCHEMA:
        raise MtprefError(
            f"schema {describe(record.get('schema'))}, expected {events.SCHEMA!r}; is it the trace of "
            "another version of mtpref?"
        )
    event: Event = read_fields(cls, record, cls.__name__)
    _check_lengths(event)
    return event


def _check_lengths(event: Event) -> None:
    """Lists that a reader walks together."""
    if isinstance(event, Verified):
        n_rows, n_draft = len(event.target_ids), len(event.draft_ids)
        for name, found in (("margins", len(event.margins)), ("near_ties", len(event.near_ties)),
                            ("draws", len(event.draws) or n_rows),
                            ("router_gaps", len(event.router_gaps) or n_rows)):  # fmt: skip
            if found != n_rows:
                raise MtprefError(f"Verified.{name}: {found} entries, expected {n_rows}, one for each of target_ids")
        if len(event.verdicts) != n_draft:
            raise MtprefError(
                f"Verified.verdicts: {len(event.verdicts)} entries, expected {n_draft}, one for each of draft_ids"
            )
        if not 0 <= event.n_accepted <= n_draft or event.n_accepted >= n_rows:
            raise MtprefError(
                f"Verified.n_accepted: {event.n_accepted} of {n_draft} drafted tokens in {n_rows} rows, "
                "expected at most as many as were drafted, and a row more"
            )
    if isinstance(event, Drafted):
        for i, step in enumerate(event.steps):
            if len(step.candidates) != len(step.p):
                raise MtprefError(
                    f"Drafted.steps[{i}].p: {len(step.p)} entries, expected {len(step.candidates)}, one "
                    "for each of candidates"
                )
