"""The JSON objects of the API. Their names and descriptions appear in /openapi.json."""

import enum

from pydantic import BaseModel, Field

BOX = "left, top, right, bottom in pixels of the upright photo"
CODE = "the code's bytes in hexadecimal; bit i of the code is bit i % 8 of byte i // 8"


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="one sentence")


class Region(BaseModel):
    """One of a photo's six regions, and what the agent decides about it."""

    region: str = Field(description="whole image, top left, ..., middle")
    box: list[int] = Field(description=BOX)
    code: str = Field(description=CODE)
    keep_prob: float = Field(description="probability of keeping the code; 1 for the whole image")
    kept: bool = Field(description="whether the agent keeps the code")
    differs: int = Field(description="number of bits that differ from the whole image's code")


class Encoded(BaseModel):
    """The codes of a photo."""

    width: int
    height: int
    box: list[int] = Field(description="the part of the photo that was encoded: " + BOX)
    num_bits: int
    keep_threshold: float
    regions: list[Region]


class Hit(BaseModel):
    """A photo of the database that a search found, and the code that was nearest to the query."""

    item: int = Field(description="row of the database; see /items/{item}")
    id: str = Field(description="the photo's name")
    distance: int = Field(description="Hamming distance in bits between the query and that code")
    region: str = Field(description="the region that the code belongs to")
    box: list[int] = Field(description=BOX)
    code: str = Field(description=CODE)
    keep_prob: float
    width: int
    height: int
    labels: list[str]


class Ranking(BaseModel):
    """The nearest photos by ascending distance, equal distances by the query's logits."""

    probed: int = Field(
        description="buckets that Algorithm 1 visits, including the empty ones; for several codes "
        "of the query, the sum over them"
    )
    nonempty: int = Field(description="visited buckets that are not empty")
    hits: list[Hit]


class Found(BaseModel):
    """The answer to a search."""

    code: str = Field(description="code of the whole query photo: " + CODE)
    num_bits: int
    mch: Ranking = Field(description="search in all codes of every photo")
    base: Ranking | None = Field(None, description="search in the whole images' codes alone")


class Bucket(BaseModel):
    """A bucket that a search looks at."""

    code: str = Field(description=CODE)
    cost: float = Field(
        description="distance from the query in this order: the sum of |logit| over the bits that "
        "differ, or their number"
    )
    distance: int = Field(description="bits in which it differs from the query's code")
    region: str = Field(description="the query's region whose code the bucket is near")
    known: int = Field(description="photos in it that an earlier bucket holds, too")
    new: int = Field(description="photos in it that no earlier bucket holds")
    hits: list[Hit] = Field(description="the first of the new photos, in the database's order")


class Probing(BaseModel):
    """A search that looks at buckets one after the other."""

    probed: int = Field(description="buckets looked at, including the empty ones")
    nonempty: int = Field(description="of these, buckets that are not empty")
    candidates: int = Field(description="codes read, repeated photos included")
    photos: int = Field(description="photos found")
    relevant: int | None = Field(
        description="of these, photos that share a label with the query; null for a query that is "
        "not in the database"
    )
    buckets: list[Bucket]


class Probed(BaseModel):
    """The buckets that a search looks at, in two orders."""

    num_bits: int
    codes: int = Field(description="number of different codes of the query")
    hamming: Probing = Field(description="by Hamming distance, equal ones by ascending flip mask")
    gqr: Probing = Field(description="by quantization distance: the sum of |logit|")


class Choice(enum.StrEnum):
    """The codes of a query: the whole photo's, those that the agent keeps, or all six."""

    one = "one"
    agent = "agent"
    all = "all"


class StoredCode(BaseModel):
    """A code in the database."""

    region: str
    box: list[int] = Field(description=BOX)
    code: str = Field(description=CODE)
    keep_prob: float


class Item(BaseModel):
    """A photo of the database."""

    item: int
    id: str
    width: int
    height: int
    labels: list[str]
    codes: list[StoredCode]


class Items(BaseModel):
    """Consecutive photos of the database."""

    total: int = Field(description="number of photos in the database")
    items: list[Item]


class Health(BaseModel):
    """The state of the service, and what it serves."""

    status: str
    method: str
    num_bits: int
    photos: int
    codes: int
    query_codes: Choice = Field(description="codes of a query unless a request says otherwise")
    labels: list[str] = Field(description="classes of the database's photos, where known")
    knows: str = Field(description="what the encoder has learned from, one sentence")
    examples: list[str] = Field(
        description="names of photos to search with; see /examples/{example}/photo"
    )
    pending: int = Field(description="requests that are being answered or wait")


class Side(enum.IntEnum):
    """The longer side of a thumbnail in pixels."""

    small = 160
    medium = 320
    large = 640
    full = 1600
