"""What the paper printed (ISMIR 2015, Tables 1 to 4), to stand beside our numbers."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

_TAGGING = ["Prec", "Recall", "F", "AROC", "MAP"]
_RANKING = ["R@40", "R@80", "R@120", "R@160", "R@200", "NDCG"]

TAGGING = pd.DataFrame.from_dict(
    {"SPMF": [0.127, 0.146, 0.136, 0.712, 0.120], "NNet": [0.184, 0.207, 0.195, 0.781, 0.178]},
    orient="index",
    columns=_TAGGING,
)
DEN_IN_MATRIX = pd.DataFrame.from_dict(
    {
        "PMF": [0.1021, 0.1533, 0.1908, 0.2206, 0.2456, 0.2419],
        "CTPF": [0.1031, 0.1511, 0.1861, 0.2138, 0.2370, 0.2395],
        "WMF": [0.1722, 0.2367, 0.2803, 0.3133, 0.3397, 0.2881],
        "CF + shallow": [0.1724, 0.2368, 0.2803, 0.3131, 0.3396, 0.2883],
        "CF + deep": [0.1722, 0.2365, 0.2800, 0.3129, 0.3394, 0.2882],
    },
    orient="index",
    columns=_RANKING,
)
DEN_OUT_OF_MATRIX = pd.DataFrame.from_dict(
    {
        "CTPF": [0.0256, 0.0700, 0.1440, 0.1869, 0.2086, 0.1271],
        "CF + shallow": [0.0503, 0.0894, 0.1218, 0.1514, 0.1778, 0.1429],
        "CF + deep": [0.0910, 0.1461, 0.1881, 0.2241, 0.2550, 0.1605],
    },
    orient="index",
    columns=_RANKING,
)
SPR_IN_MATRIX = pd.DataFrame.from_dict(
    {
        "WMF": [0.1137, 0.1286, 0.1378, 0.1449, 0.1505, 0.1415],
        "CF + shallow": [0.1138, 0.1286, 0.1377, 0.1449, 0.1504, 0.1416],
        "CF + deep": [0.1140, 0.1289, 0.1378, 0.1451, 0.1507, 0.1417],
    },
    orient="index",
    columns=_RANKING,
)
PRINTED = {
    "tagging": TAGGING,
    "DEN in-matrix": DEN_IN_MATRIX,
    "SPR in-matrix": SPR_IN_MATRIX,
    "out-of-matrix": DEN_OUT_OF_MATRIX,
}


class Claim(NamedTuple):
    """That one system beats another on a metric, or, with ``equal``, that they do not differ."""

    where: str  # a key of PRINTED
    system: str
    than: str
    metric: str
    equal: bool = False


CLAIMS = [
    Claim("tagging", "NNet", "SPMF", "AROC"),
    Claim("DEN in-matrix", "WMF", "PMF", "NDCG"),
    Claim("DEN in-matrix", "PMF", "CTPF", "NDCG"),
    Claim("DEN in-matrix", "CF + shallow", "WMF", "NDCG", equal=True),
    Claim("DEN in-matrix", "CF + deep", "WMF", "NDCG", equal=True),
    Claim("SPR in-matrix", "CF + deep", "WMF", "R@40"),
    Claim("SPR in-matrix", "CF + deep", "WMF", "NDCG"),
    Claim("SPR in-matrix", "CF + deep", "CF + shallow", "R@40"),
    Claim("out-of-matrix", "CF + deep", "CF + shallow", "R@40"),
    Claim("out-of-matrix", "CF + deep", "CF + shallow", "NDCG"),
    Claim("out-of-matrix", "CTPF", "CF + shallow", "R@120"),
]
