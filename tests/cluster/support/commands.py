"""The commands that headers and docs tell a reader to type."""

from __future__ import annotations

import re

from tests.cluster.support.manifests import OVERLAYS, PLAIN, ROOT

_VERBS = "apply|delete|wait|get|logs|describe"


def header(source: str) -> str:
    """Return the comment that opens a plain manifest, or an overlay's kustomization."""
    path = ROOT / ("k8s" if source in PLAIN else source)
    path /= source if source in PLAIN else "kustomization.yaml"
    lines = path.read_text(encoding="utf-8").split("apiVersion")[0].splitlines()
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def kubectl_commands(text: str) -> list[str]:
    """Return the kubectl commands of a text, continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [
        re.sub(r" +", " ", line.strip())
        for line in joined.splitlines()
        if re.match(rf" *kubectl ({_VERBS}) ", line)
    ]


def blocks(page: str) -> list[str]:
    """Return the blocks of commands of a page in docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"```\n(.*?)```", text, re.DOTALL)


def after(text: str, title: str) -> str:
    """Return a header from one of its titles on."""
    return text[text.index(f"\n{title}") :]


HEADERS = {source: header(source) for source in [*PLAIN, *OVERLAYS]}
