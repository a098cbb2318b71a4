"""More words for the demo's training sentences; no dev or test sentence is made of them.

`NOUNS` and `PHRASES`: entity types by kind, of which training has a few sentences each. Many labels are what teaches a
model to read a label rather than to know it by heart.
"""

NOUNS = {
    "person": """
        accountant acrobat actress admiral adviser agent ambassador anthropologist archaeologist archbishop
        artist assassin astronomer athlete author ballerina banker barber barrister bassist beekeeper biker
        biologist blacksmith bodyguard botanist brewer bricklayer builder burglar butler cameraman captain
        cardinal carpenter cartoonist cashier chancellor chaplain chauffeur chef climber columnist comedian
        commander composer conductor cook cowboy critic curator daughter dealer defendant dentist deputy
        designer diplomat director diver driver drummer economist editor electrician emperor engineer
        entrepreneur explorer firefighter fisherman florist forester founder general geologist goalkeeper golfer
        governor guard guide guitarist gymnast hacker hairdresser harpist heiress hermit hero hunter illustrator
        inspector inventor investor janitor jeweller jockey journalist king knight landlord lecturer lieutenant
        linguist locksmith magician maid mathematician mayor mechanic merchant meteorologist miller miner
        minister missionary model monk mother mountaineer murderer musician nun nurse optician optometrist
        organist owner paramedic pastor peasant pharmacist photographer physicist pilgrim pilot pirate
        playwright plumber policeman politician pope porter postman potter president priest prince princess
        printer prisoner producer professor prophet prosecutor psychologist queen rabbi racer rapper refugee
        reporter runner saxophonist scientist screenwriter secretary sergeant servant shepherd shoemaker skater
        skier smuggler sociologist spokesman sprinter student stuntman suspect tenor thief trader translator
        trumpeter tutor umpire uncle vet victim waiter watchmaker weaver widow winner witness wizard wrestler
        writer zoologist
    """.split(),
    "place": """
        abbey academy alley amphitheatre archipelago arena avenue bakery bar barn barracks basilica bay beach
        bookshop boulevard bridge building cabin cafe camp campus cape capital cave cellar cemetery chapel
        church cliff clinic club coast college colony convent cottage county court crater crossing dam desert
        district dock dungeon embassy empire estate factory fjord forest fort fortress fountain garage garden
        glacier gorge gulf gym hall hamlet harbour headquarters hill inn jail junction jungle kingdom laboratory
        lagoon landmark location mall mansion marina marsh meadow mill moor mosque motel nursery oasis ocean
        office orchard orphanage pagoda parish pass pavilion peninsula pier plantation plaza port province pub
        pyramid quarry quarter ranch reef refinery region reservoir resort restaurant road ruin salon sanctuary
        sawmill sea settlement shelter shipyard shop shrine slum spa square stable station store street studio
        suburb summit supermarket swamp synagogue tavern terminal tomb tower town valley villa ward warehouse
        waterfall well workshop
    """.split(),
    "organization": """
        agency alliance army association authority ballet brand brigade broadcaster cartel charity choir circus
        coalition committee congregation cooperative corporation council foundation gang guild institute insurer
        league manufacturer militia ministry movement navy network orchestra order parliament party publisher
        quartet regiment retailer sect society startup supplier syndicate tribe trust union
    """.split(),
    "work": """
        anthem aria article autobiography ballad biography blog book cantata cartoon chapter character concerto
        diary documentary drama drawing essay fable fairytale fresco hymn lecture legend manual manuscript map
        memoir mosaic movie mural novella ode overture pamphlet photograph podcast portrait prayer report
        requiem romance saga satire screenplay sequel serial series sketch sonata sonnet speech statue story
        tapestry textbook thriller tragedy treaty trilogy waltz watercolour website
    """.split(),
    "thing": """
        aircraft airship algorithm ambulance animal antibiotic award bacterium barge beer bicycle bird boat bomb
        bottle brandy breed bus camera canoe car carriage cat cheese chemical cocktail coin comet computer
        constellation cow crown cruiser dagger device diamond dinosaur dish donkey dragon dress drone elephant
        engine event exhibition falcon ferry festival fish flag flower food fossil fruit galleon gem goat guitar
        gun helicopter herb holiday hurricane insect jet jewel lamp lorry machine medal meteorite mineral
        missile molecule moth motorcycle mushroom necklace operation orchid parrot pear perfume pesticide phone
        piano pig planet plant poison potato prize probe protein puppet recipe religion ring ritual robot rose
        sandwich sauce scandal scooter shell shoe snake software soup spice spider sport star storm stove
        submarine sword tank telescope tiger tool toy tractor train trophy truck turtle typhoon vaccine van vase
        vehicle violin virus wagon war watch weapon whale whisky wine wolf
    """.split(),
}
# labels of two and three words
PHRASES = {
    "person": (
        "police officer|train driver|film director|tennis player|football player|opera singer|prime minister|"
        "crown prince|taxi driver|research assistant|news reader|fashion designer|chess player|"
        "vice president|army officer|flight attendant|human rights activist|software engineer|head teacher|"
        "ice skater|bank robber|fire chief"
    ),
    "place": (
        "art gallery|railway station|football ground|national park|shopping centre|bus stop|concert hall|"
        "power plant|research centre|space station|petrol station|police station|primary school|"
        "industrial estate|nature reserve|mountain range|border crossing|swimming pool|rose garden|city hall|"
        "night club|ski resort|burial site"
    ),
    "organization": (
        "law firm|football club|political party|trade union|news agency|radio station|television channel|"
        "oil company|rock group|charity shop|research group|secret service|youth club|insurance company|"
        "publishing house|street gang|government agency|car maker|dance company|student union"
    ),
    "work": (
        "short story|radio play|board game|crime novel|love song|folk song|comic strip|feature film|"
        "stage play|television series|news article|oil painting|piano piece|picture book|travel guide|"
        "scientific paper"
    ),
    "thing": (
        "fighter jet|sports car|race horse|chemical element|computer program|operating system|computer virus|"
        "cargo ship|mobile phone|space probe|steam engine|fishing boat|guard dog|soft drink|apple variety|"
        "literary prize|religious festival|military operation|natural disaster|card game|file format|"
        "tropical storm"
    ),
}
FIRST_NAMES = """
Adele Adriana Alasdair Alfred Alma Amara Ambrose Angela Ansel Antonia Arthur Ayesha Bernard Bianca Bridget Caleb
Camila Caroline Catherine Charles Christopher Claire Colin Cora Cyrus Daphne Delphine Desmond Dorothy Douglas Eleanor
Eliza Elizabeth Elsa Enrique Ernest Esme Evelyn Farah Fernando Flora Frederick Gemma Gerald Gina Giulia Gloria Gustav
Gwen Harold Harriet Hiroshi Imogen Iris Isaac Jack Jasmine Jean John Judith Kaito Kamala Kristin Kwame Layla Leon
Leonard Lillian Louis Louise Lucas Mabel Manuel Marcus Margaret Marguerite Matilda Matteo Maurice Mikhail Mohammed
Monica Nathan Neil Niamh Nicolas Oliver Oscar Patrick Paul Penelope Philip Quentin Ralph Raj Rebecca Richard Robert
Roland Rosalind Rupert Ruth Sandra Sebastian Shirin Silvia Solomon Stella Stephen Susan Sylvia Tamara Theodore Tobias
Umar Uma Vincent Wanda Walter Winston Xavier Yasmin Yolanda Zachary
""".split()
SURNAMES = """
Achebe Acosta Adler Aguilar Ahlberg Alvarez Anand Anderson Araki Armstrong Bailey Barnes Bauer Bell Bergman Blake Boyd
Brennan Brooks Brown Burke Campbell Carlsson Carter Castro Chang Clarke Cole Collins Conway Crawford Cruz Curtis
Davies Diaz Doyle Drummond Duarte Duncan Dvorak Eklund Elliott Engel Evans Feng Finch Flores Franco Fujita Garcia
Gardiner Goldberg Gomez Gonzalez Grant Greene Griffiths Gupta Gutierrez Hall Hardy Harris Hassan Hayes Hill Holm
Hughes Hunt Hussain Ibarra Ito Jackson Jensen Johnson Jones Joshi Kane Kelly Khan King Klein Knight Koch Kovacs Kumar
Larsen Lee Lewis Li Lindqvist Lopez Lovelace Lund Madsen Malone Mann Marsh Martinez Mason Mbeki Mendoza Miller Molina
Moore Morales Moretti Murphy Murray Myers Ndiaye Nelson Neumann Nguyen Nielsen Noble Nowak Obi Ogawa Olsen Ortega Page
Palmer Park Parker Pereira Perry Phillips Pierce Pinto Popov Powell Price Rahman Ramos Rao Reid Reyes Richards Riley
Rivera Roberts Robinson Rogers Romano Ross Ruiz Russell Ryan Saito Santos Schmidt Scott Shah Shaw Simmons Singh Smith
Soto Steiner Stewart Stone Strand Suzuki Svensson Tan Taylor Thomas Thompson Torres Tran Tucker Ueda Valdez Vargas
Volkov Wallace Wang Ward Watson West White Williams Wilson Winter Wong Wood Wright Xu Yang Young Zhang Zhou
""".split()
# names of people that are names of places too, or places that could be
GIVEN_NAMES = """
Aberdeen Acapulco Alabama Alaska Albany Alberta Alma Alps Antigua Aragon Arcadia Arden Ariel Aspen Atlanta Azores
Bahama Baltimore Barbados Bavaria Belfast Bermuda Berne Beverly Bolton Bradford Brandon Brisbane Britney Burgundy
Burma Byron Cadiz Calais Calcutta Cambridge Canberra Candia Capri Cardiff Carina Castile Ceylon Chandler Chelmsford
Clarence Clyde Colorado Columbia Cordoba Corinth Cornwall Corsica Creston Crete Cuzco Cyprus Dalmatia Damascus Darwin
Delaware Delhi Delphi Derby Dorset Dover Dresden Dublin Durban Durham Eden Essex Eton Everton Exeter Ferrara Fleming
Galway Gascony Genoa Gloria Granada Grenada Guernsey Gwent Halifax Hamilton Harlem Havana Hawaii Hebron Heidi Henley
Hilton Hobart Hudson Idaho Iona Iowa Ithaca Jamaica Jersey Johore Judea Juneau Kansas Kashmir Kelso Kerry Kimberley
Kirby Lancaster Leeds Leith Leslie Lester Logan Lombardy Louisiana Lucerne Lusaka Luxor Lydia Lyons Macon Madeira
Majorca Malaga Malibu Malmo Manitoba Mantua Marsala Martinique Melissa Melrose Mercia Miami Milton Minorca Minsk
Modena Monaco Montana Montserrat Murcia Nairn Nantes Natal Navarra Nelson Newport Niagara Norfolk Normandy Norton
Nottingham Nubia Oakland Odense Ohio Olympia Omaha Ontario Oregon Oxford Padua Palermo Palma Panama Parma Patras Perth
Perugia Petersburg Pisa Plymouth Portia Potsdam Preston Provence Quebec Ravenna Reno Rhoda Richmond Riga Rochester
Romney Rutland Salisbury Samoa Sardinia Savoy Seattle Seville Sharjah Sheffield Shelby Sicily Sienna Skye Smyrna Sofia
Somerset Sparta Stafford Sterling Stirling Sudan Surrey Sussex Swansea Syracuse Tahiti Tampa Tara Tasmania Texas Tibet
Tiffany Tobago Tripoli Tucson Tulsa Tyrone Ulster Utah Utrecht Valetta Vancouver Venetia Venice Verity Vermont Vernon
Warwick Wellington Wesley Weston Whitney Winchester Windsor Wyoming York Yukon Zambia Zaragoza
""".split()
# words that serve as a name of almost anything
BRAND_WORDS = """
Abacus Abyss Acacia Accord Achilles Adagio Adder Aegis Agate Alabaster Albatross Alchemy Alder Alloy Almond Aloe Alpha
Alpine Amethyst Amulet Anaconda Anthem Antler Anvil Apollo Aqua Arbor Arcade Archer Arena Argus Armada Armour Arrow
Ascent Ashes Aspen Aster Astro Athena Atom Autumn Axis Azalea Azure Bagel Balance Ballad Banjo Banner Banshee Barley
Barracuda Basalt Bastion Bear Beech Beetle Bella Beluga Berry Beta Birch Bishop Blackbird Blackout Blossom Bluebell
Boa Bolt Bonfire Boomerang Borealis Boulder Bramble Brick Bridge Bubble Buckle Buffalo Bullet Butterfly Buzzard Cactus
Calypso Camel Camino Campfire Canary Capricorn Caramel Caravan Cardinal Caribou Carnival Carousel Cascade Cathedral
Caviar Cello Centaur Century Chalk Chameleon Champion Charcoal Chariot Cheetah Chestnut Chili Chimera Chrome Cipher
Circus Citadel Citrus Cliff Cloud Clover Coconut Colossus Columbus Concord Contour Copper Corona Corsair Cosmos Cotton
Coyote Crane Crater Cricket Crocus Crossroads Crow Crystal Cube Cumulus Cupid Curlew Cypress Daffodil Dagger Dahlia
Daisy Damson Dawn Daybreak Deer Diamond Digit Dingo Dolphin Domino Dove Driftwood Drum Dune Dynamo Easel Ebony
Edelweiss Elder Electra Electron Elk Elm Empire Enigma Epic Epoch Equinox Eros Everest Evergreen Fable Falcon Feather
Fennel Fern Fiddle Fig Finch Firefly Fjord Flamingo Flare Flash Flint Flora Flute Foghorn Forge Fossil Foxglove
Freedom Frost Fury Fusion Gable Galleon Gallop Gamma Gannet Garnet Gazelle Gecko Geyser Ghost Giant Giraffe Gladiator
Globe Goblin Goose Gorilla Granite Grape Graphite Gravity Grizzly Grove Guava Gull Gypsum Halo Hammer Harbinger
Harmony Harp Harvest Havoc Hawk Hawthorn Heather Hedgehog Helios Helium Helix Hemlock Hercules Hermes Hero Hickory
Hippo Honey Hornet Hurricane Hyacinth Ibis Icarus Iceberg Icicle Icon Igloo Iguana Impala Indigo Infinity Ink Iris
Iron Island Ivory Jackal Jackdaw Jasper Javelin Jester Jigsaw Journey Jubilee Juno Jupiter Kangaroo Kayak Keystone
Kingfisher Kite Kiwi Knight Koala Labyrinth Ladybird Lark Laser Latitude Laurel Lavender Legend Leopard Lichen
Lighthouse Lilac Lily Lime Limerick Linden Lion Liquid Lizard Llama Lobster Logic Lullaby Lumen Lunar Lute Magenta
Magma Magnet Magnolia Magpie Mahogany Mammoth Mandarin Mantis Marble Marigold Mars Marten Mastodon Maze Meadow Melody
Melon Meridian Mermaid Midas Midnight Mimosa Minotaur Miracle Mirage Mocha Mongoose Moon Moose Mosaic Mulberry Muse
Mushroom Mystic Narwhal Nebula Nectar Needle Nemesis Neptune Neutron Nightingale Nimbus Noble Nomad Nougat Nutmeg Oak
Obelisk Ocelot Octave Octopus Odyssey Olympus Omega Orchid Origami Osiris Ox Oyster Palette Palm Papaya Parade Paradox
Parrot Pebble Pegasus Pelican Peony Peregrine Phoenix Photon Piano Pickle Pine Pioneer Pirate Planet Plasma Plaza
Pluto Polo Poppy Porcupine Poseidon Primrose Prometheus Proton Puffin Pumpkin Pyramid Quail Quantum Quartz Quest
Quince Rabbit Raccoon Radar Radish Rainbow Raspberry Rattle Reef Reindeer Rhapsody Rhino Rhythm Riddle Ridge River
Robin Rocket Rooster Rosemary Rowan Rumba Saber Sable Salamander Salmon Salsa Samba Samurai Sandstorm Sapphire Scarab
Scarecrow Seagull Sequoia Serpent Shadow Shamrock Shark Silver Siren Skylark Slate Snowdrop Snowflake Solar Solstice
Sonar Sonic Sorbet Sparrow Spearmint Sphinx Spider Spiral Spirit Spruce Squirrel Stallion Stardust Starling Stellar
Stork Stratos Sultan Sunbeam Sundance Sunflower Sunrise Swallow Swan Swift Sycamore Symphony Tangerine Tapestry
Tarantula Teak Terra Thorn Thyme Tiger Toffee Topaz Torch Tortoise Totem Toucan Trident Trinity Triton Trout Truffle
Tulip Turbo Turquoise Turtle Twilight Typhoon Ulysses Umbra Unicorn Uranus Valkyrie Vanguard Vanilla Venus Verbena
Vermilion Violet Vista Vivid Volt Vortex Vulcan Vulture Wasp Waterfall Wildcat Wildfire Windmill Wisteria Wizard Wolf
Wolverine Wombat Woodpecker Xenon Yarrow Yellowstone Yeti Yonder Zebra Zephyr Zeppelin Zeus Zigzag Zinc Zircon Zodiac
""".split()
_REAL = {
    "city": """
        Amsterdam|Athens|Baghdad|Bangkok|Barcelona|Beijing|Berlin|Bogota|Boston|Brussels|Budapest|Buenos Aires|
        Cairo|Cape Town|Chicago|Copenhagen|Dublin|Edinburgh|Frankfurt|Hamburg|Hanoi|Helsinki|Hong Kong|Istanbul|
        Jakarta|Karachi|Lagos|Lima|Lisbon|Liverpool|Los Angeles|Lyon|Madrid|Manchester|Manila|Melbourne|
        Mexico City|Montreal|Moscow|Mumbai|Munich|Nairobi|Naples|New York|Oslo|Prague|Rome|San Francisco|Seoul|
        Shanghai|Singapore|Stockholm|Tokyo|Toronto|Turin|Warsaw|Washington|Zurich
    """,
    "country": """
        Argentina|Australia|Austria|Belgium|Bolivia|Brazil|Bulgaria|Canada|Chile|China|Colombia|Cuba|Denmark|
        Egypt|Estonia|Ethiopia|Finland|France|Germany|Ghana|Greece|Hungary|Iceland|India|Indonesia|Iran|Ireland|
        Israel|Italy|Japan|Mexico|Morocco|Nepal|New Zealand|Nigeria|Norway|Pakistan|Peru|Poland|Portugal|
        Romania|Russia|Senegal|Serbia|South Africa|Spain|Sweden|Switzerland|Thailand|Turkey|Ukraine|Uruguay|
        Vietnam|Zambia
    """,
    "river": """
        Amazon River|Congo|Danube|Elbe|Euphrates|Ganges|Indus|Loire|Mekong|Mississippi|Murray River|Niger|Nile|
        Oder|Po|Rhine|Rhone|Seine|Tagus|Thames|Tiber|Tigris|Vistula|Volga|Yangtze|Zambezi
    """,
}
REAL_PLACES = {kind: "".join(map(str.strip, names.splitlines())).split("|") for kind, names in _REAL.items()}
FILLERS = {
    "nationality": """
        American Australian Austrian Belgian Brazilian British Canadian Chilean Chinese Cuban Czech Danish Dutch
        Egyptian English Finnish French German Greek Hungarian Indian Irish Italian Jamaican Japanese Kenyan
        Korean Mexican Nigerian Norwegian Peruvian Polish Portuguese Russian Scottish Serbian Spanish Swedish
        Swiss Turkish Ukrainian Vietnamese Welsh
    """.split(),
    "year": [str(year) for year in range(1900, 2026)],
    "number": "two three four five six seven eight nine ten eleven twelve 15 20 32 50 77 100 250 1,200 thirty".split(),
}

# weight and shape of a training name, beside those of words.SHAPES; the pools more_* and real_* are training's own
PERSON_SHAPES = ((4, "{more_full}"), (1, "{more_surname}"))
MORE_SHAPES: dict[str, tuple[tuple[float, str], ...]] = {
    "hospital": ((1, "{place} General Hospital"), (1, "{given} Memorial Hospital"), (1, "Saint {given} Hospital")),
    "disease": ((1, "{more_surname} disease"), (1, "{place} virus")),
    "drug": ((1, "{coined}"),),
    "band": ((1, "The {word}"),),
    "song": ((0.5, "The {phrase}"), (0.5, "Song of {given}")),
    "album": ((0.5, "The {phrase}"), (0.5, "Songs of {given}")),
    "company": ((1, "{coined} Inc"), (1, "{more_surname} Group"), (1, "{more_surname} and {more_surname}")),
    "bank": ((1, "Bank of {place}"), (1, "National Bank of {place}"), (1, "{coined} Bank")),
    "product": ((1, "{word} Pro"), (1, "{coined} X")),
    "team": ((1, "{place} City"), (1, "{real_city} {word}"), (1, "{real_city}")),
    "stadium": ((1, "{place} Stadium"), (0.5, "{more_surname} Stadium"), (0.5, "{word} Arena")),
    "tournament": ((1, "{place} Championship"), (1, "{more_surname} Trophy"), (1, "{real_country} Open")),
    "city": ((5, "{real_city}"),),
    "country": ((5, "{real_country}"),),
    "river": ((4, "{real_river}"),),
    "hotel": ((1, "Grand Hotel {place}"), (1, "{phrase} Hotel"), (0.5, "Hotel {word}")),
    "airline": ((1, "{place} Airlines"), (0.5, "{word} Airways")),
    "video game": ((0.5, "{word} Quest"), (0.5, "{phrase} 3")),
}
# of rare types; {type} is the type itself: "Kelford Castle"
RARE_SHAPES: dict[str, tuple[tuple[float, str], ...]] = {
    "person": ((6, "{full}"), (2, "{surname}"), (2, "{given}"), *PERSON_SHAPES),
    "place": (
        *((4, "{place}"), (2, "{surname}"), (3, "{phrase}"), (1, "{word}")),
        *((2, "{place} {type}"), (1, "{given} {type}")),
    ),
    "organization": (
        *((4, "{word}"), (3, "{phrase}"), (2, "{place}"), (1, "{surname}"), (1, "{coined}")),
        *((1, "The {phrase}"), (2, "{place} {type}"), (1, "{more_surname} {type}")),
    ),
    "work": ((5, "{phrase}"), (4, "{word}"), (1, "{given}"), (1, "The {phrase}"), (0.5, "The {word}")),
    "thing": ((4, "{word}"), (3, "{given}"), (3, "{phrase}"), (2, "{coined}")),
}
