"""The words of the demo's problems: themes and sentences. Text only; `problems.py` puts numbers to them."""

from dataclasses import dataclass, field


NAMES = (
    *(("Maya", "she"), ("Omar", "he"), ("Lucia", "she"), ("Tomas", "he"), ("Priya", "she"), ("Kenji", "he")),
    *(("Amara", "she"), ("Felix", "he"), ("Ingrid", "she"), ("Diego", "he"), ("Noor", "she"), ("Samuel", "he")),
    *(("Elena", "she"), ("Ravi", "he"), ("Sofia", "she"), ("Jonas", "he"), ("Leila", "she"), ("Marcus", "he")),
)


@dataclass(frozen=True)
class Theme:
    """
    Sentences of one kind of story. In all of them `{name}` is the person, `{items}` what is counted,
    `{pack}`/`{packs}` a container, and `{a}`, `{b}` are numbers.

    Args:
        items (`tuple[str, ...]`): Plural nouns.
        packs (`tuple[tuple[str, str], ...]`): Containers, singular and plural.
        opening (`tuple[str, ...]`): There are a containers of b items.
        opening_sum (`tuple[str, ...]`): There are a items and b items.
        gain (`tuple[str, ...]`): b items more.
        loss (`tuple[str, ...]`): b items fewer.
        receivers (`tuple[str, ...]`): Plural nouns among whom the items are shared.
        more_packs (`tuple[str, ...]`, *optional*): Another a containers of b items.
        worth (`tuple[str, ...]`, *optional*): Every item brings b dollars, and the question for the sum.
    """

    items: tuple[str, ...]
    packs: tuple[tuple[str, str], ...]
    opening: tuple[str, ...]
    opening_sum: tuple[str, ...]
    gain: tuple[str, ...]
    loss: tuple[str, ...]
    receivers: tuple[str, ...]
    more_packs: tuple[str, ...] = (
        "{name} also gets {a} {packs} with {b} {items} in each.",
        "Later {a} {packs} of {b} {items} each arrive.",
    )
    worth: tuple[str, ...] = field(
        default=(
            "{name} sells all of the {items} for ${b} each. How many dollars does {name} earn?",
            "All the {items} are sold at a price of ${b} each. How much money is that in dollars?",
        )
    )


THEMES = (
    Theme(
        items=("pens", "pencils", "markers", "erasers"),
        packs=(("box", "boxes"), ("case", "cases")),
        opening=(
            "{name} orders {a} {packs} of {items} for the school, and each {pack} holds {b} {items}.",
            "There are {a} {packs} of {items} in the art room with {b} {items} in every {pack}.",
        ),
        opening_sum=("{name} keeps {a} {items} on one shelf and {b} {items} on another shelf.",),
        gain=("A parent donates {b} more {items}.", "{name} finds another {b} {items} in a drawer."),
        loss=("During the week {b} {items} are used up.", "{name} lends {b} {items} to another class."),
        receivers=("students", "tables", "teams"),
    ),
    Theme(
        items=("apples", "pears", "plums", "peaches"),
        packs=(("basket", "baskets"), ("crate", "crates")),
        opening=(
            "{name} fills {a} {packs} with {items}, putting {b} {items} into each {pack}.",
            "At the orchard {name} picks {a} {packs} of {items}. Every {pack} has {b} {items}.",
        ),
        opening_sum=("{name} picks {a} {items} in the morning and {b} {items} in the afternoon.",),
        gain=("A neighbour brings {b} more {items}.", "The next day {name} picks another {b} {items}."),
        loss=("Then {b} {items} turn out to be rotten and are thrown away.", "{name} eats or gives away {b} {items}."),
        receivers=("neighbours", "friends", "cousins"),
    ),
    Theme(
        items=("muffins", "rolls", "cookies", "bagels"),
        packs=(("tray", "trays"), ("rack", "racks")),
        opening=(
            "{name} bakes {a} {packs} of {items} with {b} {items} on each {pack}.",
            "A bakery makes {a} {packs} of {items} before sunrise, and {b} {items} fit on every {pack}.",
        ),
        opening_sum=("{name} bakes {a} {items} on Friday and {b} {items} on Saturday.",),
        gain=("After lunch {name} bakes {b} more {items}.", "The other oven yields another {b} {items}."),
        loss=("By noon {b} {items} have been eaten.", "{name} burns {b} {items} and has to throw them away."),
        receivers=("cafes", "guests", "customers"),
    ),
    Theme(
        items=("books", "comics", "maps", "magazines"),
        packs=(("shelf", "shelves"), ("cart", "carts")),
        opening=(
            "The library where {name} works has {a} {packs} of {items}, each {pack} with {b} {items}.",
            "{name} sorts {items} onto {a} {packs} so that every {pack} carries {b} {items}.",
        ),
        opening_sum=("A library owns {a} old {items} and {b} new {items}.",),
        gain=("Readers return {b} more {items}.", "The city sends another {b} {items}."),
        loss=("Visitors borrow {b} {items}.", "{name} removes {b} damaged {items}."),
        receivers=("schools", "rooms", "branches"),
    ),
    Theme(
        items=("marbles", "stickers", "cards", "beads"),
        packs=(("bag", "bags"), ("jar", "jars")),
        opening=(
            "{name} has {a} {packs} of {items}. There are {b} {items} in each {pack}.",
            "For a birthday {name} receives {a} {packs}, every one with {b} {items} inside.",
        ),
        opening_sum=("{name} owns {a} red {items} and {b} blue {items}.",),
        gain=("In a game {name} wins {b} more {items}.", "A sister gives {name} another {b} {items}."),
        loss=("On the way home {name} loses {b} {items}.", "{name} trades away {b} {items}."),
        receivers=("friends", "brothers", "classmates"),
    ),
    Theme(
        items=("eggs", "carrots", "potatoes", "onions"),
        packs=(("carton", "cartons"), ("sack", "sacks")),
        opening=(
            "A farmer named {name} packs {a} {packs} of {items} with {b} {items} in every {pack}.",
            "{name} takes {a} {packs} to the market, and each {pack} contains {b} {items}.",
        ),
        opening_sum=("The farm of {name} yields {a} {items} on Monday and {b} {items} on Tuesday.",),
        gain=("The barn still holds {b} more {items}.", "{name} brings another {b} {items} in the evening."),
        loss=("On the road {b} {items} break or get lost.", "The family keeps {b} {items} for supper."),
        receivers=("restaurants", "stalls", "families"),
    ),
    Theme(
        items=("tulips", "roses", "seeds", "bulbs"),
        packs=(("row", "rows"), ("bed", "beds")),
        opening=(
            "In a garden {name} plants {a} {packs} of {items}, {b} {items} to each {pack}.",
            "{name} looks after {a} {packs} in the park, and every {pack} is planted with {b} {items}.",
        ),
        opening_sum=("{name} plants {a} {items} along the wall and {b} {items} by the gate.",),
        gain=("In spring {name} plants {b} more {items}.", "A friend plants another {b} {items}."),
        loss=("A storm ruins {b} {items}.", "Rabbits eat {b} {items}."),
        receivers=("gardens", "visitors", "volunteers"),
    ),
    Theme(
        items=("miles", "kilometers"),
        packs=(("day", "days"), ("week", "weeks")),
        opening=(
            "{name} cycles for {a} {packs} and covers {b} {items} each {pack}.",
            "On a long walk of {a} {packs}, {name} makes {b} {items} every {pack}.",
        ),
        opening_sum=("{name} travels {a} {items} by boat and {b} {items} on foot.",),
        gain=("A detour adds {b} more {items}.", "Afterwards {name} runs another {b} {items}."),
        loss=("The part of {b} {items} that was done by bus does not count.",),
        receivers=("riders", "stages"),
        more_packs=("Then {name} goes on for {a} {packs} at {b} {items} per {pack}.",),
        worth=("A sponsor pays ${b} for each of these {items}. How many dollars does the sponsor pay?",),
    ),
    Theme(
        items=("dollars",),
        packs=(("week", "weeks"), ("month", "months")),
        opening=(
            "{name} saves {b} {items} every {pack} for {a} {packs}.",
            "For {a} {packs} {name} puts {b} {items} each {pack} into a savings account.",
        ),
        opening_sum=("{name} has {a} {items} in a wallet and {b} {items} at home.",),
        gain=("An aunt adds {b} more {items}.", "{name} finds another {b} {items} in an old coat."),
        loss=("{name} spends {b} {items} on a present.", "A repair costs {name} {b} {items}."),
        receivers=("jars", "charities", "children"),
        more_packs=("Then {name} works for {a} {packs} and saves {b} {items} per {pack}.",),
        worth=(),
    ),
)

SCALE = {
    2: ("By the end of the season the number of {items} has doubled.", "Then the number of {items} doubles."),
    3: ("By the end of the season the number of {items} has tripled.", "Then the number of {items} triples."),
}
SHARE = (
    "The {items} are shared equally among {b} {receivers}. How many {items} does each of them get?",
    "{name} divides the {items} equally between {b} {receivers}. How many {items} go to each?",
)
TOTAL = (
    "How many {items} is that in the end?",
    "What is the final number of {items}?",
    "Find the number of {items} at the end.",
)
