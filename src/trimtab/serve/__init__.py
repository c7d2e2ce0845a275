"""Dials in use: a batch that never stops, an OpenAI-compatible server over it, and a page with sliders."""

from trimtab.serve.engine import Busy, Engine, TooLong
from trimtab.serve.request import Begun, End, Event, Request, Token
from trimtab.serve.shelf import Shelf

__all__ = ["Begun", "Busy", "End", "Engine", "Event", "Request", "Shelf", "Token", "TooLong"]
