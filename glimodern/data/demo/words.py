"""Word lists of the demo corpus: the types, the parts of names, and what a name of each type looks like.

Most shapes are shared by several types on purpose: a bare "Mercury", "Jordan" or "Kelford" may be a band, a country or
a hospital, and every kind of person draws from the same names. The label is then in the sentence, not in the name.
"""

# domain -> its fine types; held-out types are not among them
DOMAINS = {
    "medicine": ("surgeon", "patient", "hospital", "disease", "drug"),
    "music": ("singer", "band", "song", "album"),
    "business": ("executive", "company", "bank", "product"),
    "sport": ("player", "coach", "team", "stadium", "tournament"),
    "travel": ("city", "country", "river", "hotel", "airline"),
    "computing": ("programmer", "programming language", "database", "video game"),
}
HELD_OUT_TYPES = ("museum", "pianist")

# Types of which training has a few examples each, most with the label beside the name: many labels are what teaches a
# model to read a label rather than to know it by heart, and so what carries over to the held-out types.
BROAD_TYPES = {
    "person": """
        actor architect astronaut baker bishop boxer butcher cellist chemist clown cyclist dancer detective farmer
        gardener historian judge lawyer librarian novelist painter philosopher poet sailor sculptor senator soldier spy
        swimmer tailor teacher violinist
    """.split(),
    "place": """
        airport aquarium brewery canal casino castle cathedral cinema farm gallery island lake library lighthouse market
        mine monastery monument mountain observatory palace park prison school temple theatre tunnel university village
        vineyard volcano zoo
    """.split(),
    "work": "comic film musical novel opera painting play poem sculpture symphony".split(),
    "thing": "camel dog horse locomotive magazine newspaper rocket satellite ship yacht".split(),
}

# coarse type -> the fine types it covers; a span may be asked for at either level
COARSE = {
    "person": (
        *("surgeon", "patient", "singer", "executive", "player", "coach", "programmer", "pianist"),
        *BROAD_TYPES["person"],
    ),
    "organization": ("band", "company", "bank", "team", "airline"),
    "place": ("hospital", "stadium", "city", "country", "river", "hotel", "museum", *BROAD_TYPES["place"]),
    "creative work": ("song", "album", "video game", *BROAD_TYPES["work"]),
}

FILLERS = {
    "month": "January February March April May June July August September October November December".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "nationality": "Brazilian Danish Dutch German Korean Mexican Nigerian Polish Turkish Welsh".split(),
    "year": "1954 1968 1977 1983 1991 1999 2004 2008 2013 2019".split(),
    "number": "three five seven eight ten eleven twelve fifteen twenty thirty forty fifty".split(),
}

FIRST_NAMES = """
Aaron Abigail Adam Agnes Ahmed Aisha Alan Albert Alice Amina Amir Amy Andrea Andrei Anita Anna Anton Arjun Astrid
Barbara Beatriz Ben Boris Bruno Carla Carlos Carmen Cecilia Chen Clara Daniel David Deepa Diana Dmitri Edith Elena
Elias Emil Emily Emma Erik Esther Fatima Felix Fiona Frank Frida Gabriel George Grace Greta Hana Hannah Hassan Hector
Helen Henry Hugo Ibrahim Igor Ines Ingrid Irene Isabel Ivan Jacob James Jane Javier Joan Johan Jonas Joseph Julia
Karim Karl Kate Kenji Kofi Lars Laura Leila Lena Linda Luca Lucy Magnus Malik Maria Martin Mary Mehmet Mei Michael
Mira Nadia Naomi Nikola Nina Noah Nora Olga Omar Otto Pablo Paula Pavel Pedro Peter Priya Rachel Rafael Ravi Rosa
Samuel Sara Simon Sofia Sven Tariq Teresa Thomas Tomas Ursula Vera Viktor Wei William Yara Yuki Yusuf Zainab Zoe
""".split()

SURNAMES = """
Abbott Adeyemi Aldridge Almeida Andersen Archer Ashworth Baker Baldwin Banerjee Barlow Becker Bennett Berger Bishop
Blackwell Bogdanov Bowen Bradley Brandt Burgess Calloway Cardoso Carver Castellano Chambers Chandler Chaudhry Cooper
Costa Cromwell Dalton Darwin Dawson Delgado Dietrich Donovan Draper Dumont Eberhardt Edwards Eriksen Espinoza
Fairchild Farrell Ferrari Fischer Fletcher Fontaine Ford Forsyth Foster Fraser Gallagher Garner Gibson Goodwin Granger
Grimaldi Gustafsson Haddad Halloran Hammond Hansen Harding Hartmann Haskell Hawkins Hendricks Herrera Hoffman Holloway
Horvath Ibsen Ishikawa Iverson Jansen Jarvis Kapoor Kaufmann Keller Kimura Kowalski Kruger Laurent Lehmann Lindberg
Lombardi Mackenzie Mahoney Marchetti Mercer Meyer Mitchell Montague Moreau Morgan Moss Nakamura Navarro Newton Nilsson
Novak Okafor Oliveira Osborne Pascal Patel Pemberton Perez Petrov Pickering Porter Prescott Quinn Ramsey Reinhardt
Ricci Rosenberg Rossi Rutherford Salazar Sanders Sato Schneider Sharma Shepherd Silva Sorensen Spencer Stanton
Sullivan Takahashi Tanner Thatcher Thornton Turner Underwood Vasquez Vogel Wagner Walker Webster Weiss Whitaker
Yamamoto Zimmerman
""".split()

# names of people that are names of places too
GIVEN_NAMES = """
Adelaide Alexandria Arizona Asia Augusta Austin Avalon Bethany Bristol Brooklyn Camden Carlisle Carmel Carolina
Catalina Chad Charlotte Chelsea Chester Cheyenne Clifton Dakota Dallas Denver Devon Diego Elba Eugene Florence
Francisco Geneva Georgia Helena Holland Houston Indiana Jackson Jericho Jordan Kent Kenya Kingston Laramie Lincoln
London Lorraine Lourdes Madison Malta Marina Marion Memphis Milan Montana Nevada Odessa Orlando Paris Petra Phoenix
Preston Raleigh Regina Rhodes Salem Salvador Samara Santiago Savannah Selma Sharon Siena Sydney Trenton Troy Valencia
Verona Victoria Vienna Virginia
""".split()

# words that serve as a name of almost anything
BRAND_WORDS = """
Acorn Admiral Amazon Amber Anchor Apex Apple Arctic Argon Aries Atlas Aurora Avalanche Avatar Badger Bamboo Baron Basil
Beacon Beaver Bison Blaze Bravo Breeze Bronco Candle Canyon Captain Carbon Cascade Castle Cedar Cherry Cinder Clover
Cobalt Cobra Comet Compass Condor Coral Cougar Crown Cyclone Delta Denim Dragon Duke Eagle Echo Eclipse Ember Exodus
Falcon Fortress Galaxy Gemini Genesis Ginger Glacier Griffin Hazel Heron Holly Horizon Hydra Inferno Ivy Jade Jaguar
Java Juniper Karma Kestrel Kraken Lagoon Lantern Lava Lemon Libra Lightning Lotus Lynx Lyra Mamba Mango Maple Matrix
Maverick Medusa Mercury Mesa Meteor Mint Mistral Monarch Monsoon Mustang Neon Nirvana Nova Oasis Olive Onyx Opal Oracle
Orange Orion Osprey Otter Pacific Pandora Panther Peach Penguin Pepper Phantom Pilot Pixel Plum Polaris Prairie Prince
Prism Pulsar Puma Python Quasar Queen Ranger Rapids Raven Ruby Saffron Sage Satin Saturn Savanna Scorpio Scout Shell
Sierra Silk Sirius Spectre Storm Summit Tango Taurus Tempest Thistle Thunder Tide Titan Tornado Tower Tundra Vector Vega
Velvet Vertex Viper Virgo Volcano Walnut Willow Zenith
""".split()

PLACE_STEMS = """
Al Ash Bel Bren Cal Cor Dal Dar Dun El Fen Gal Gren Hal Har Hol Ingle Jar Kel Kirk Lan Lin Mar Mel Mor Nar Nor Os Pel
Pen Rook Strath Sut Tor Thorn Vel Vin Wex Whit Zar
""".split()
PLACE_ENDS = """
ara berg borough bury by dale den field ford grad ham haven land low mora mouth nia ova ria sk stad stan stead ton vale
via wick
""".split()

COINED_STEMS = """
Altri Axo Bri Cala Celo Dexo Ekto Fluo Gavi Ixo Jenta Kryo Lumi Mero Nebu Nexo Omni Opti Prax Quanti Rixa Solvi Synta
Telo Trini Uvo Vantri Verti Xano Zolo
""".split()
COINED_ENDS = "bex core dia dra fex kor lix mera nix phar quo ra rix ron sta tix tra vance via zen".split()

ADJECTIVES = """
Ancient Bitter Blue Brave Broken Bronze Burning Copper Crimson Crystal Dancing Distant Electric Emerald Empty Endless
Eternal Fallen Frozen Ghostly Golden Grand Hidden Hollow Iron Ivory Lonely Lost Lucky Midnight Northern Paper Purple
Quiet Restless Royal Sacred Scarlet Secret Silent Silver Sleeping Southern Stolen Velvet Wandering Wicked Wild Winter
""".split()
NOUNS = """
Arrow Bell Bridge Carnival Circle Cloud Crow Desert Dream Engine Feather Fire Flower Forest Fountain Fox Garden Gate
Harbour Hill Horse Island Journey Kingdom Lake Light Lion Machine Meadow Mirror Moon Mountain Ocean Orchard Palace Rain
River Road Rose Shadow Ship Sky Star Stone Sun Swan Tiger Train Tree Valley Wave Wolf
""".split()

AILMENT_PARTS = """
black blue bone brain brown cold grey gut hay heart joint liver lung marsh milk nerve red river skin white
""".split()
AILMENTS = "anaemia cramp fever flu palsy plague pox rot scurvy sickness tremor wasting".split()

# weight and shape of a name; {pool} is a draw from the pool of that name (see names.py)
PERSON_SHAPES = ((6, "{full}"), (2, "{surname}"), (2, "{given}"))
SHAPES: dict[str, tuple[tuple[int, str], ...]] = {
    "surgeon": PERSON_SHAPES,
    "patient": PERSON_SHAPES,
    "executive": PERSON_SHAPES,
    "player": PERSON_SHAPES,
    "coach": PERSON_SHAPES,
    "programmer": PERSON_SHAPES,
    "pianist": PERSON_SHAPES,
    "singer": (*PERSON_SHAPES, (1, "{word}")),
    "hospital": (
        (4, "{place}"),
        (2, "{surname}"),
        (2, "Saint {given}"),
        (1, "{place} Hospital"),
        (1, "{surname} Clinic"),
    ),
    "disease": ((3, "{place}"), (3, "{ailment}"), (2, "{surname} syndrome"), (2, "{place} fever")),
    "drug": ((5, "{coined}"), (3, "{word}"), (1, "{coined} Forte"), (1, "{coined} Plus")),
    "band": ((4, "{word}"), (3, "{phrase}"), (1, "{place}"), (1, "{given}"), (1, "The {phrase}")),
    "song": ((3, "{phrase}"), (3, "{word}"), (2, "{given}"), (2, "{place}")),
    "album": ((4, "{phrase}"), (4, "{word}"), (2, "{place}")),
    "company": ((3, "{word}"), (2, "{coined}"), (3, "{surname}"), (1, "{surname} Industries"), (1, "{word} Motors")),
    "bank": ((4, "{place}"), (3, "{surname}"), (1, "{word}"), (1, "{place} Bank"), (1, "{surname} Trust")),
    "product": ((4, "{coined}"), (3, "{word}"), (2, "{phrase}"), (1, "{coined} Plus")),
    "team": ((4, "{place}"), (2, "{word}"), (2, "{given}"), (1, "{place} United"), (1, "{place} Rovers")),
    "stadium": ((3, "{phrase}"), (3, "{place}"), (2, "{surname}"), (1, "{place} Park"), (1, "{surname} Arena")),
    "tournament": ((3, "{place}"), (3, "{word}"), (2, "{word} Cup"), (2, "{place} Open")),
    "city": ((6, "{place}"), (2, "{given}"), (1, "Port {place}"), (1, "New {given}")),
    "country": ((5, "{place}"), (3, "{given}"), (1, "New {place}"), (1, "Upper {place}")),
    "river": ((5, "{place}"), (3, "{given}"), (2, "{phrase}")),
    "hotel": ((4, "{phrase}"), (2, "{place}"), (2, "{word}"), (1, "{place} Inn"), (1, "Hotel {given}")),
    "airline": ((4, "{word}"), (3, "{coined}"), (1, "{place}"), (1, "{place} Airways"), (1, "Air {given}")),
    "museum": ((4, "{place}"), (3, "{surname}"), (3, "{phrase}")),
    "programming language": ((4, "{word}"), (3, "{coined}"), (2, "{given}"), (1, "{surname}")),
    "database": ((5, "{word}"), (4, "{coined}"), (1, "{word} Store")),
    "video game": ((4, "{phrase}"), (3, "{word}"), (2, "{coined}"), (1, "{phrase} II")),
    **dict.fromkeys(BROAD_TYPES["person"], PERSON_SHAPES),
    **dict.fromkeys(BROAD_TYPES["place"], ((4, "{place}"), (2, "{surname}"), (3, "{phrase}"), (1, "{word}"))),
    **dict.fromkeys(BROAD_TYPES["work"], ((5, "{phrase}"), (4, "{word}"), (1, "{given}"))),
    **dict.fromkeys(BROAD_TYPES["thing"], ((4, "{word}"), (3, "{given}"), (3, "{phrase}"))),
}
