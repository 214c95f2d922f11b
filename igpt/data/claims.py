"""The claim of a place for a data set: `options.json`, created before anything else is written.

It holds what decides the bytes, so that another data set is never mixed into one that is there,
whole or half-finished.
"""

import json
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from igpt.data.index import PALETTE, ShardOptions, load_index
from igpt.data.palette import Palette
from igpt.errors import DataCorrupt, NotFound, UserError
from igpt.storage import Store

OPTIONS = "options.json"
#: Where a claim says what made the palette; older ones do not.
_MADE = "palette_made"


def shard_options(**values: Any) -> ShardOptions:
    """The options of a data set. Raises UserError for a value that cannot be."""
    try:
        return ShardOptions(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"{problem['loc'][0]}={problem['input']!r} cannot be: {problem['msg']}"
        ) from None


def claim(store: Store, options: ShardOptions, source: str, palette: Palette) -> bool:
    """Claims the place for this data set; says whether it is there already, whole.

    source: its digest. Raises UserError where the place is claimed for another data set.
    """
    wanted = {**_claims(options, source), "palette": palette.digest, _MADE: palette.made}
    there = _there(store)
    if there is not None:
        _refuse_difference(wanted, there, store.uri)
        return True
    if not store.create(OPTIONS, json.dumps(wanted, indent=1).encode()):
        _refuse_difference(wanted, _begun(store), store.uri)
    if not store.create(PALETTE, palette.to_bytes()):
        found = {"palette": Palette.from_bytes(store.get(PALETTE), PALETTE).digest}
        _refuse_difference({"palette": palette.digest}, found, store.uri)
    return False


def check_claim(
    store: Store, options: ShardOptions, source: str, *, made: str, palette: str | None
) -> None:
    """Raises UserError where the place is claimed for other options, source or palette.

    made: what makes the palette (`Palette.made`). palette: its digest; None where it may still have
    to be fitted. Writes nothing.
    """
    found = _there(store)
    if found is None:
        with suppress(NotFound):
            found = _begun(store)
    if found is not None:
        wanted = {**_claims(options, source), _MADE: made}
        if palette is None:
            found.pop("palette", None)
        else:
            wanted["palette"] = palette
        _refuse_difference(wanted, found, store.uri)


def _claims(options: ShardOptions, source: str) -> dict[str, Any]:
    """What decides the bytes, but for the palette; flat, as options.json holds it."""
    return {**options.model_dump(mode="json"), "source": source}


def _there(store: Store) -> dict[str, Any] | None:
    """The claim of the finished data set; None where there is none."""
    try:
        index, _ = load_index(store)
    except NotFound:
        return None
    claims = _claims(index.options, str(index.source["digest"]))
    claims["palette"] = index.palette_digest
    with suppress(NotFound):  # of what was copied without it nobody knows what made the palette
        claims |= {key: value for key, value in _begun(store).items() if key == _MADE}
    return claims


def _begun(store: Store) -> dict[str, Any]:
    """The claim of a data set that is being written. Raises NotFound where there is none."""
    try:
        return dict(json.loads(store.get(OPTIONS)))
    except ValueError:
        raise DataCorrupt(f"{store.uri}/{OPTIONS} is not what was written there") from None


def _refuse_difference(wanted: dict[str, Any], found: dict[str, Any], where: str) -> None:
    keys = wanted.keys() | found.keys()
    if _MADE not in found or _MADE not in wanted:
        keys -= {_MADE}
    different = [k for k in sorted(keys) if wanted.get(k) != found.get(k)]
    if different:
        texts = [f"{k} is {found.get(k)!r} there, {wanted.get(k)!r} here" for k in different]
        raise UserError(
            f"{where} holds a data set of other input: {'; '.join(texts)}",
            mend="Give the same input to go on with it, or another place for the new data set",
        )
