"""One ranking out of several: reciprocal rank fusion and distribution-based score fusion. Pure functions.

Fused here rather than in the store: k and weights mean the same in either store and on every version of Qdrant (whose
RRF counts ranks from 0 with k = 2 unless told, and whose DBSF knows no weights), and a hit can tell its rank in each.
"""

import math

K = 60  # Cormack, Clarke, Büttcher (SIGIR 2009)


def rrf(rankings, weights=None, k=K):
    """{id: score} of rankings [[(id, score), best first]]: the sum of weight / (k + rank), ranks from 1."""
    scores = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, (point, _) in enumerate(ranking, 1):
            scores[point] = scores.get(point, 0.0) + weight / (k + rank)
    return scores


def dbsf(rankings, weights=None):
    """{id: score}: each ranking's scores laid over mean ± 3 standard deviations (0 to 1), weighted, and added up.

    The sample's deviation, as Qdrant takes it; a ranking whose scores are all equal counts 0.5 each.
    """
    scores = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        values = [score for _, score in ranking]
        mean = sum(values) / len(values) if values else 0.0
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
        for point, score in ranking:
            part = (score - mean + 3 * spread) / (6 * spread) if spread > 1e-12 else 0.5
            scores[point] = scores.get(point, 0.0) + weight * part
    return scores


def best(scores, limit):
    """[(id, score)], best first; equal scores in the order of their ids, so that the same search answers the same."""
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
