"""A dozen annotated sentences about various subjects, on which a fine-tuned model shows what it has forgotten."""

from glimodern.data import Dataset, Example
from glimodern.inputs.words import word_splitter
from glimodern.model.precision import CANARY_LABELS, CANARY_TEXTS

# The entities of each text of CANARY_TEXTS: label -> their words, as they stand in the text.
_GOLD: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "person": ("Maria Keller",),
        "organization": ("Siemens", "Bosch"),
        "location": ("Munich",),
        "date": ("March 2019",),
    },
    {"person": ("Ahmed Farouk",), "organization": ("World Bank",), "location": ("Cairo",), "date": ("Tuesday",)},
    {"organization": ("Lagos University Hospital",), "disease": ("malaria", "typhoid fever")},
    {
        "organization": ("Toyota",),
        "product": ("Corolla",),
        "location": ("Brazil", "Argentina"),
        "date": ("2014", "2017"),
    },
    {"event": ("1998 World Cup",), "location": ("Saint-Denis", "France", "Brazil")},
    {"organization": ("ETH Zurich", "Stanford"), "event": ("Tokyo conference",)},
    {"location": ("Oslo", "Reykjavik"), "organization": ("Icelandair",), "person": ("Halldor Laxness",)},
    {"organization": ("Nokia", "Microsoft"), "date": ("2014",)},
    {"product": ("Aspirin",), "disease": ("stroke",), "person": ("Helen Park",), "organization": ("Mayo Clinic",)},
    {"date": ("4 July",), "organization": ("Smithsonian",), "person": ("Amelia Earhart",), "location": ("Washington",)},
    {},
    {"event": ("Hurricane Maria",), "location": ("Puerto Rico",), "date": ("September 2017",)},
)


def canary(splitter: str) -> Dataset:
    """Return the sentences, split into words as a model's splitter does; each is asked CANARY_LABELS."""
    split = word_splitter(splitter)
    examples = []
    for number, (text, gold) in enumerate(zip(CANARY_TEXTS, _GOLD, strict=True)):
        words = split(text)
        starts, ends = {word.start: i for i, word in enumerate(words)}, {word.end: i for i, word in enumerate(words)}
        entities = []
        for label, found in gold.items():
            for entity in found:
                start = text.index(entity)
                # a splitter may cut other words than the annotation does
                if start in starts and start + len(entity) in ends:
                    entities.append((starts[start], ends[start + len(entity)], label))
        examples.append(
            Example([word.text for word in words], sorted(entities), f"canary:{number}", types=CANARY_LABELS)
        )
    return Dataset("canary", examples)
