"""What a route answers with that is kept as a file: CSV, JSON lines or Parquet, streamed."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Response
from fastapi.responses import StreamingResponse

BYTE_ORDER_MARK = "\ufeff"
"""Spreadsheets take a file for UTF-8 only when it begins with it; programs don't expect it."""
JSON_LINES = "application/jsonl"
PARQUET = "application/vnd.apache.parquet"


def file_response(chunks: Iterator[str] | Iterator[bytes], name: str, media_type: str) -> Response:
    """An error on the way breaks the answer off: half a file must not look whole."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(chunks, media_type=media_type, headers=headers)


def csv_response(chunks: Iterator[str], name: str) -> Response:
    return file_response(chunks, name, "text/csv; charset=utf-8")
