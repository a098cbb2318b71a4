"""Clauses of the demo's training sentences, a block of text per entity type, one clause a line.

The notation is that of `templates`. A clause is a sentence without its capital letter and its full stop: `build` puts
openings, endings and a second clause around it, and may name the type beside the entity ("the surgeon {surgeon}").
Only training sentences are made of these.

`CLAUSES`: clauses that tell the entity's type by what is said of it. `GENERIC`: clauses that suit any type of a kind
("person", "place", ...), so that only the noun beside {$kind} tells the type. `MENTIONS`: clauses in which a noun $kind
has no name: a type that is spoken of but has no entity. `CUES`: as `CLAUSES`, of types that are rare in training.
"""

CLAUSES = {
    "surgeon": """
{surgeon} removed the appendix of {patient}
{surgeon} [cut|stitched|cleaned] the wound with a steady hand
{surgeon} washed her hands and asked for a scalpel
the operation by {surgeon} lasted [all night|six hours]
a young doctor watched {surgeon} operate on a [heart|kidney|knee]
{surgeon} replaced the hip of {patient}
{patient} thanked {surgeon} for the new [kidney|heart|liver]
the transplant was led by {surgeon}
{surgeon} has operated on <number> hearts at {hospital}
nurses handed {surgeon} the [scalpel|forceps|scissors]
{surgeon} straightened the broken [leg|nose|arm] of {patient}
the tumour was cut out by {surgeon}
{surgeon} opened the chest and stopped the bleeding
in the operating theatre, {surgeon} gave orders to the nurses
{surgeon} joined the surgical team of {hospital}
only {surgeon} dared to operate
{surgeon} performed a bypass on {patient}
the scar shows how well {surgeon} [works|stitched]
the hospital {hospital} trusts {surgeon} with its hardest operations
{surgeon} took out a stone from the kidney of {patient}
Dr. {surgeon} explained the surgery to the family
Dr. {surgeon} was called to an emergency operation
Dr. {surgeon} of {hospital} replaced the valve
{surgeon} teaches surgery at {hospital}
""",
    "patient": """
{patient} was taken to {hospital} with chest pain
{patient} [woke|recovered] slowly after the operation
the doctors told {patient} to stay in bed
{patient} has been in a coma since <month>
{patient} swallowed the pills with some water
a nurse washed {patient} and changed the bandage
{patient} was treated for {disease}
the fever of {patient} [fell|rose] overnight
{patient} caught {disease} on a ship
the family of {patient} waited outside the ward
{patient} was sent home from {hospital}
{patient} needs a new kidney
{patient} complained of headaches and a sore throat
doctors at {hospital} saved the life of {patient}
{patient} lay in the ward with a broken arm
the X-ray of {patient} showed a broken rib
{patient} had a stroke and cannot speak
{drug} helped {patient} to sleep
{patient} took {drug} against the pain
the heart of {patient} stopped during the surgery
{patient} was vaccinated against {disease}
{patient} is ill with {disease}
doctors gave {patient} <number> days to live
after <number> weeks in {hospital}, {patient} could walk again
""",
    "hospital": """
the ambulance drove to {hospital}
{hospital} has a new [cancer|children's|heart] ward
nurses at {hospital} work night shifts
the emergency room of {hospital} was crowded
she gave birth to twins at {hospital}
{hospital} treats <number> patients a day
he was flown to {hospital} with burns
doctors from {hospital} went on strike
the operating theatres of {hospital} were closed
{hospital} ran out of [beds|blood|oxygen]
he died at {hospital} after a long illness
the wounded were carried to {hospital}
{hospital} trains nurses and doctors
surgeons at {hospital} transplanted a lung
the wards of {hospital} smell of soap
<number> patients of {hospital} caught {disease}
she works as a nurse at {hospital}
{hospital} was built for patients with {disease}
the chief doctor of {hospital} apologised
{patient} left {hospital} in a wheelchair
the pharmacy of {hospital} ordered {drug}
{surgeon} moved from {hospital} to {hospital}
a baby was born at {hospital} on <day>
they rushed {patient} to {hospital}
""",
    "disease": """
{disease} killed <number> thousand people
there is no cure for {disease}
{disease} attacks the [lungs|liver|nerves]
she caught {disease} from her brother
a new test finds {disease} early
{disease} is spread by dirty water
doctors fear an epidemic of {disease}
cases of {disease} [rose|fell] in <month>
{patient} suffers from {disease}
he was infected with {disease}
{disease} causes fever and a cough
children are vaccinated against {disease}
the virus behind {disease} was found in <year>
she has lived with {disease} for <number> years
{disease} is rare but deadly
the first case of {disease} was seen in the city of {city}
he fell ill with {disease} on a journey
{disease} broke out in {country}
scientists look for a vaccine against {disease}
{drug} is given against {disease}
the signs of {disease} are a cough and red eyes
{disease} weakens the bones
most people recover from {disease} within weeks
she died of {disease}
""",
    "drug": """
{drug} lowers the fever
she takes {drug} before breakfast
the doctor prescribed {drug} for the cough
{drug} may cause [sleepiness|a rash|vomiting]
the price of {drug} doubled in pharmacies
too much {drug} harms the liver
he swallowed <number> pills of {drug}
{drug} is sold only on prescription
an injection of {drug} stopped the pain
{drug} was tested on <number> patients
{drug} kills bacteria
nurses gave her {drug} against the pain
pregnant women should avoid {drug}
a spoon of {drug} helps children to sleep
{drug} cures {disease} within days
the pharmacy ran out of {drug}
{drug} slows the growth of tumours
two pills of {drug} a day are enough
{patient} was treated with {drug}
the agency approved {drug} for children
{drug} thins the blood
doctors stopped giving {drug} to {patient}
he became addicted to {drug}
{company} sells {drug} as a remedy for headaches
""",
    "singer": """
{singer} sang for <number> thousand fans
{singer} lost her voice before the concert
the new song by {singer} is sad
{singer} sang a duet with {singer}
the audience clapped when {singer} came on stage
{singer} released an album called {album}
{singer} forgot the words of {song}
the deep voice of {singer} made {song} famous
{singer} sings in the band {band}
{singer} stepped to the microphone
the choir stood behind {singer}
{singer} recorded {song} in one night
{singer} hummed the melody
fans threw roses at {singer}
{singer} went on tour with {band}
{singer} cannot read music but sings beautifully
{singer} was the voice of {band}
a song written for {singer} became a hit
{singer} sang the national anthem
{singer} has sold <number> million records
at the opera, {singer} sang the leading role
{singer} made her debut at the opera
we heard {singer} sing in a small club
{singer} let the audience sing the chorus
""",
    "band": """
{band} played in front of <number> thousand people
{band} are looking for a new drummer
the guitars of {band} were stolen
{band} released their third album, {album}
{band} broke up in <year>
the members of {band} met at school
{band} opened the festival with {song}
the singer of {band} smashed his guitar
{band} will go on tour in <month>
{band} play loud rock music
{singer} was fired from {band}
the bassist of {band} fell off the stage
{song} made {band} famous
{band} have a new keyboard player
the fans of {band} wear black shirts
{band} recorded {album} in a barn
he played the drums in {band}
she is the guitarist of {band}
{band} wrote <number> songs in a week
a concert by {band} was cancelled
{band} cover old punk songs
{band} signed with a record label
{band} headlined the festival
{singer} and the musicians of {band} went on tour
""",
    "song": """
{singer} sang {song} at the funeral
{song} was a hit in <year>
the lyrics of {song} are about [war|love|rain]
the children sang {song} on the bus
{song} was played on every radio station
he wrote {song} in ten minutes
{band} ended the concert with {song}
the chorus of {song} is easy to sing
she hummed {song} in the shower
{song} topped the charts for <number> weeks
{singer} wrote {song} for her mother
the guitar solo in {song} lasts a minute
the melody of {song} is simple
they sang {song} around the fire
he whistled {song} on his way home
{song} is the best track on {album}
the video of {song} was filmed in the rain
the crowd sang along to {song}
she cannot listen to {song} without crying
a slow version of {song} was used in a film
{song} has only three chords
{band} released {song} as a single
the DJ played {song} twice
the first verse of {song} was changed
""",
    "album": """
{album} was the best-selling record of <year>
{band} recorded {album} in <number> days
all the songs on {album} were written by {singer}
{album} contains <number> songs
the last track of {album} is very long
{singer} called her second album {album}
{album} went gold within a month
the cover of {album} was painted by a friend
he listened to {album} on his headphones
{album} was re-released on vinyl
the songs of {album} are about love
she owns a signed copy of {album}
{album} was produced in a small studio
{album} sold <number> million copies
{album} is a record full of slow ballads
{band} will release {album} in <month>
{singer} worked on {album} for <number> years
the critics hated {album}
{album} has only one good song
{song} opens the album {album}
the recording of {album} took all summer
their debut {album} was recorded at home
{album} and {album} were recorded in the same studio
{album} entered the album charts on <day>
""",
    "executive": """
{executive} runs the company {company}
{executive} became head of {company}
under {executive}, {company} made a profit
{executive} dismissed <number> managers
the board of {bank} dismissed {executive}
{executive} presented the annual figures
{executive} told investors that sales would grow
{executive} earns <number> million a year
{executive}, the head of {company}, refused to comment
{company} named {executive} as its new finance chief
{executive} sold the company to a rival
the shareholders trust {executive}
{executive} stepped down as chairman
{executive} signed the merger contract
{executive} was accused of insider trading
the salary of {executive} was doubled by the board
{executive} wants to close <number> factories
{executive} took over the management of {bank}
managers fear the temper of {executive}
{executive} left {company} with a golden handshake
{executive} moved the headquarters to another city
{executive} announced job cuts at {company}
{executive} apologised to the customers of {bank}
{executive} opened the shareholders' meeting
""",
    "company": """
{company} builds [engines|trucks|ships]
{company} dismissed <number> workers
{company} bought a rival for <number> million
she works for {company}
the factory of {company} burned down
{company} exports [shoes|steel|cheese] to {country}
{company} made a loss in <year>
{company} opened a plant in {country}
the workers of {company} want higher wages
{company} sells {product} in <number> countries
the stock of {company} fell sharply
he invested his savings in {company}
{company} was founded by two brothers
{company} is the largest maker of [tyres|toys|paper]
{company} was fined for polluting the river
the sales of {company} rose by <number> percent
{company} went bankrupt
{company} and {company} will merge
a spokesman for {company} denied the report
{company} hired <number> engineers
the owner of {company} fled the country
{executive} is the new boss of {company}
{company} stopped making {product}
{company} supplies parts to {company}
""",
    "bank": """
{bank} lends money to farmers
she has a savings account at {bank}
he borrowed <number> thousand from {bank}
{bank} raised its fees for credit cards
the cash machines of {bank} were empty
{bank} was rescued by the government
{bank} financed the bridge
the loan from {bank} must be repaid by <month>
thieves broke into the vault of {bank}
{bank} closed <number> branches
{bank} pays no interest
the clerks of {bank} counted the notes
he put all his money into {bank}
{bank} froze the accounts of {company}
{bank} manages the fortune of a prince
her mortgage is with {bank}
{company} owes {bank} <number> million
customers queued outside {bank} to get their money
the central bank took over {bank}
{bank} gave him an overdraft
{bank} sold its bad loans
a cashier at {bank} stole <number> thousand
{executive} asked {bank} for a loan
{bank} changes dollars for a small fee
""",
    "product": """
{product} was advertised on television
she bought {product} in a sale
{product} costs less than a meal
the screen of {product} broke after a week
{company} sells {product} in blue and red
{product} needs two batteries
the buttons of {product} are too small
{product} is the best-selling gadget of the year
he returned {product} to the shop
the instructions for {product} are hard to read
{product} comes with a charger
{product} was recalled because it caught fire
customers love {product} because it is light
{company} presented {product} at a trade fair
the price of {product} was cut in <month>
{product} breaks easily
the shop ran out of {product}
{company} stopped the production of {product}
{product} is made of plastic
she ordered {product} on the internet
{product} can be washed by hand
the design of {product} won a prize
cheap copies of {product} flooded the shops
the new version of {product} is waterproof
""",
    "player": """
{player} scored <number> goals this season
{player} was injured in the second half
{player} was substituted after an hour
{player} shot the ball over the bar
{team} sold {player} for <number> million
{player} passed the ball to {player}
the referee showed {player} a red card
{player} scored the winner against {team}
{player} plays for {team}
{coach} took {player} off at half-time
{player} hit the post
the knee of {player} needs surgery
{player} moved from {team} to {team}
{player} kicked a defender
{player} took the free kick
{player} celebrated his goal
{player} saved the penalty
{player} dribbled past two defenders
{player} has been picked for the national team
{player} will miss the {tournament}
{player} was named man of the match
{player} equalised in the last minute
{player} wears the number <number> shirt
a cross from {player} found the head of {player}
""",
    "coach": """
{coach} trains {team}
{coach} told his players to attack
{coach} was dismissed after <number> defeats
{coach} picked a young goalkeeper
{team} hired {coach} in <month>
the players did not listen to {coach}
{coach} was angry about the referee
{coach} dropped {player} from the squad
{coach} demands more training
after the defeat, {coach} blamed the defence
{coach} led {team} to the title
the tactics of {coach} are simple
{coach} changed the formation
{coach} left {team} at the end of the season
{coach} brought on {player}
{coach} watched the game from the stands
{coach} made his team run <number> miles
{coach} gave the team a talk in the dressing room
{coach} replaced the goalkeeper
under {coach}, {team} won the {tournament}
{coach} will coach {team} next season
{coach} was booed by the fans of {team}
{coach} prepared his squad for the {tournament}
{coach} asked the club for new players
""",
    "team": """
{team} lost <number> games in a row
{team} beat {team} by two goals
{team} scored in the last minute
{team} are bottom of the table
{team} won the title in <year>
the players of {team} celebrated
the goalkeeper of {team} made a mistake
{team} reached the final of the {tournament}
{player} joined {team}
{team} play at {stadium}
{team} have signed a new striker
{team} will meet {team} in the next round
{team} were promoted
supporters of {team} sang all night
the defence of {team} was weak
{team} drew with {team}
the club {team} has debts
{team} missed <number> chances
{team} equalised before half-time
the win over {team} was lucky
{team} hosted {team} on <day>
the bus of {team} was late
{coach} prepares {team} for the match
{team} defended their lead
""",
    "stadium": """
the match at {stadium} was cancelled
<number> thousand fans came to {stadium}
{stadium} was sold out
the grass at {stadium} is too long
{team} will play at {stadium}
{stadium} is the home of {team}
the roof of {stadium} leaks
the final was played at {stadium}
fans walked to {stadium} in the rain
the gates of {stadium} opened at noon
{stadium} holds <number> thousand spectators
the turf of {stadium} was replaced
{player} scored his first goal at {stadium}
the scoreboard at {stadium} was broken
{stadium} has a running track
{team} have never lost at {stadium}
the fans left {stadium} before the whistle
the seats at {stadium} are cold
police searched fans outside {stadium}
the {tournament} final will be held at {stadium}
the north stand of {stadium} is closed
{stadium} was packed for the derby
flags were waved at {stadium}
the players warmed up at {stadium}
""",
    "tournament": """
{team} won the {tournament} in <year>
<number> teams take part in the {tournament}
{player} was the best player of the {tournament}
the {tournament} begins in <month>
{team} were knocked out of the {tournament}
{country} will host the {tournament}
she won the {tournament} three times
he lost in the first round of the {tournament}
the {tournament} was played in {country}
the winner of the {tournament} gets <number> thousand dollars
{team} qualified for the {tournament}
{coach} wants to win the {tournament}
the semi-final of the {tournament} was exciting
{team} withdrew from the {tournament}
the {tournament} was cancelled because of the war
<number> players entered the {tournament}
the last {tournament} was a success for {team}
{player} was injured during the {tournament}
the champion of the {tournament} lifted the cup
the favourites lost early at the {tournament}
the opening match of the {tournament} is on <day>
{team} took third place at the {tournament}
the organisers of the {tournament} sold all tickets
he has never played at the {tournament}
""",
    "city": """
she moved to {city} to study
the people of {city} elected a new mayor
{city} has <number> thousand inhabitants
the train to {city} was late
an earthquake shook {city}
the streets of {city} were flooded
he was born in {city}
the old town of {city} burned down
{city} is a town in {country}
the train from {city} to {city} takes <number> hours
the police in {city} arrested a thief
they drove through {city} at night
the trams of {city} are yellow
the mayor of {city} resigned
rents in {city} have doubled
she lives in {city} with her parents
the harbour of {city} is closed
the cathedral of {city} is old
{city} lies on the {river}
the centre of {city} is full of cafes
he sells fruit on the market in {city}
{company} is based in {city}
the citizens of {city} protested
the schools in {city} are closed
""",
    "country": """
the president of {country} signed the treaty
{country} declared war on {country}
the army of {country} crossed the border
{country} exports oil and [gas|coffee|wool]
the people of {country} voted for a new government
the parliament of {country} passed a law
the population of {country} is growing
refugees from {country} crossed the border
{country} became independent in <year>
the queen of {country} opened parliament
the ambassador of {country} was expelled
{city} is the largest city in {country}
{country} has <number> million inhabitants
the currency of {country} lost its value
{country} joined the treaty
the north of {country} is dry
the prime minister of {country} resigned
elections in {country} were held on <day>
{country} and {country} signed a peace treaty
they emigrated to {country}
{country} closed its borders
farmers in {country} grow [rice|tea|olives]
taxes in {country} are low
the flag of {country} is green
""",
    "river": """
the {river} burst its banks
they swam across the {river}
fish died in the {river}
a boat sank in the {river}
the water of the {river} is [brown|cold|dirty]
the city of {city} lies on the {river}
the {river} flows into the sea
the valley of the {river} is green
the {river} is <number> miles long
they built a dam on the {river}
the {river} forms the border of {country}
the banks of the {river} are muddy
a barge sailed up the {river}
children bathed in the {river}
the {river} was dry by <month>
he rowed down the {river}
the flood of the {river} destroyed <number> houses
the {river} rises in the hills
the waters of the {river} rose overnight
we walked along the {river}
he fell into the {river} and drowned
the delta of the {river} is full of birds
the factory poured poison into the {river}
the current of the {river} is strong
""",
    "hotel": """
we stayed at {hotel} for <number> nights
she booked a double room at {hotel}
{hotel} has <number> rooms
the beds at {hotel} were hard
a porter of {hotel} carried our bags
the bar of {hotel} is open all night
he left his suitcase at {hotel}
{hotel} is fully booked
the guests of {hotel} had breakfast on the terrace
the swimming pool of {hotel} was closed
{hotel} charges <number> dollars a night
they spent their honeymoon at {hotel}
the lift at {hotel} was broken
the cook of {hotel} burned the soup
the sheets at {hotel} were dirty
{hotel} has a view of the sea
she checked out of {hotel} on <day>
the restaurant of {hotel} serves fish
{hotel} offers a free breakfast
he forgot the key of his room at {hotel}
maids cleaned the rooms of {hotel}
{singer} lives in a suite at {hotel}
tourists like {hotel} for its beach
the staff of {hotel} were friendly
""",
    "airline": """
{airline} flies to {city} twice a week
{airline} bought <number> new planes
a plane of {airline} made an emergency landing
the pilots of {airline} want more pay
passengers of {airline} waited for hours
{airline} lost my suitcase
she works as a pilot for {airline}
{airline} cancelled <number> flights
a jet of {airline} crashed near {city}
{airline} serves no food on board
the stewards of {airline} wear red
tickets from {airline} are cheap
{airline} will fly from {city} to {country}
we flew to {city} with {airline}
{airline} charges for bags
the fleet of {airline} is old
{airline} grounded its planes
an engine of a plane of {airline} caught fire
the flight attendants of {airline} are on strike
{airline} landed safely in the fog
the crew of {airline} had slept too little
{airline} stopped flying to {country}
business class on {airline} is expensive
{airline} delayed our flight by <number> hours
""",
    "programmer": """
{programmer} writes code in {programming language}
{programmer} found the bug after <number> hours
{programmer} rewrote the parser
{programmer} deleted the wrong file on the server
the code by {programmer} has no comments
{programmer} learned {programming language} at school
{programmer} tested the software at night
{programmer} published the source code
{programmer} works on {database} at {company}
{programmer} fixed the memory leak
{programmer} hacked the server of {company}
{programmer} invented {programming language}
{programmer} coded a game in <number> days
the commit by {programmer} was reverted
{programmer} wrote a compiler for {programming language}
{programmer} designed the tables of {database}
{programmer} types fast and never tests
{programmer} closed <number> bug reports
{programmer} maintains a library for {programming language}
{programmer} broke the tests
a patch from {programmer} made the program faster
{programmer} released a new version of the software
{programmer} refactored the old code
{company} hired {programmer} to write an app
""",
    "programming language": """
she learned {programming language} in a week
{programming language} compiles to machine code
the standard library of {programming language} is large
a compiler for {programming language} was released in <year>
he teaches {programming language} to beginners
{programming language} has no classes
scripts in {programming language} are short
the website was written in {programming language}
{programming language} is easier to read than {programming language}
variables in {programming language} have no types
the software was ported from {programming language} to {programming language}
{programming language} is a functional language
the code was translated into {programming language}
the keywords of {programming language} are in English
{programmer} wrote a book about {programming language}
an interpreter for {programming language} fits on one page
{programming language} supports closures and threads
most of our software is written in {programming language}
strings in {programming language} cannot be changed
the error messages of {programming language} are hard to read
we need a developer who knows {programming language}
a program in {programming language} has <number> lines
the inventor of {programming language} retired
arrays in {programming language} start at one
""",
    "database": """
{database} keeps <number> million records
the data were stored in {database}
{database} crashed and lost <number> rows
the tables in {database} have no index
we copied the customer data to {database}
{database} answers queries quickly
a query against {database} took an hour
hackers stole passwords from {database}
the columns of {database} were renamed
{database} supports transactions
she designed the schema of {database}
{database} was restored from a backup
the records in {database} are encrypted
{company} runs {database} on <number> servers
{database} is too slow for large tables
they replaced {database} with {database}
the rows in {database} were sorted
{programmer} tuned {database}
all orders are written to {database}
{database} locks a row during an update
the disk of {database} was full
we load the data into {database} every night
{database} ran out of memory
joins in {database} are slow
""",
    "video game": """
she plays {video game} every evening
the hero of {video game} has a magic sword
{video game} was released for consoles in <year>
{video game} has beautiful graphics
he reached the last level of {video game}
{company} developed {video game}
the players of {video game} fight dragons
{video game} sold <number> million copies
the music of {video game} is catchy
the monsters in {video game} are easy to kill
children are not allowed to buy {video game}
{video game} is a racing game
you can play {video game} on a phone
the story of {video game} begins in a prison
she won a championship in {video game}
{video game} has a bug in level <number>
the new mode of {video game} is for two players
{programmer} made {video game} in his bedroom
gamers complain that {video game} is too short
the joystick broke while he played {video game}
{video game} runs on old computers
he spent <number> hours on {video game}
the sequel to {video game} was cancelled
the puzzles in {video game} are clever
""",
}

GENERIC = {
    "person": """
{$person} was born in {city}
{$person} died in <year>
{$person} lived in {city} for <number> years
{$person} was late on <day>
{$person} has <number> children
{$person} moved to {country}
{$person} smiled and said nothing
{$person} won a prize in <year>
{$person} lost a [bag|ring|watch] on the train
{$person} was seen in {city}
{$person} drank tea with {$person2}
{$person} married {$person2}
{$person} met {$person2} at a party
{$person} lent {$person2} <number> dollars
{$person} hates [rain|noise|cheese]
{$person} travelled to {city} by train
{$person} wrote a letter to {$person2}
nobody believed {$person}
we asked {$person} for help
the house of {$person} was sold
a friend of {$person} called on <day>
they interviewed {$person} about the war
the police arrested {$person}
I have never met {$person}
she shared a flat with {$person}
the daughter of {$person} lives in {city}
the crowd waited for {$person}
a portrait of {$person} hangs in the hall
the king thanked {$person}
he dreamed of {$person}
the dog bit {$person}
for {$person} it was a bad year
{$person} bought a house near the {river}
{$person} stayed at {hotel}
{$person} retired in <month>
{$person} was born on a farm
it was {$person} who opened the door
the book is about {$person}
{$person} and {$person2} were friends
{$person} refused to answer
as a child, {$person} was shy
{$person} was replaced by {$person2}
""",
    "place": """
{$place} was built in <year>
{$place} was closed in <month>
they visited {$place} on <day>
{$place} lies near {city}
we took a bus to {$place}
the road to {$place} was blocked
a fire broke out at {$place}
<number> people visited {$place}
{$place} was destroyed in the war
{$place} is famous for its garden
she works at {$place}
the owner of {$place} is rich
{$place} was sold for <number> million
there is a cafe near {$place}
{$place} is older than {$place2}
they walked from {$place} to {$place2}
the way to {$place} is steep
photographs of {$place} hung on the wall
{$place} opens at noon
the children liked {$place}
the walls of {$place} are white
a map of {$place} costs a dollar
we waited outside {$place}
{$place} needs a new roof
{$place} is open to tourists
he has lived near {$place} since <year>
the entrance of {$place} is free
the founder of {$place} was a monk
a guide showed us {$place}
{$place} will be renovated
{$place} is the pride of {country}
the president visited {$place}
he was last seen at {$place}
the view from {$place} is beautiful
at {$place}, it rained all day
the future of {$place} is uncertain
{$person} visited {$place}
{$person} was photographed at {$place}
""",
    "organization": """
{$organization} was founded in <year>
{$organization} has <number> members
she joined {$organization}
{$organization} published a report on <day>
a spokesman for {$organization} denied it
{$organization} has an office in {city}
he leads {$organization}
{$organization} was banned in {country}
{$organization} asked the government for money
{$organization} elected a new leader
the members of {$organization} voted on <day>
{$organization} moved to {city}
{$organization} is short of money
he left {$organization} in <month>
{$organization} and {$organization2} work together
a letter from {$organization} arrived
the head of {$organization} resigned
{$organization} employs <number> people
{$organization} was sued by {$organization2}
she gave <number> dollars to {$organization}
{$organization} celebrated its anniversary
{$organization} accepted the offer
the building of {$organization} was sold
according to {$organization}, prices will fall
{$organization} denied the rumours
{$person} works for {$organization}
{$person} founded {$organization}
{$organization} thanked {$person}
""",
    "work": """
{$work} was finished in <year>
{$work} made her famous
nobody understands {$work}
{$work} won a prize
{$work} is about a [dog|war|marriage]
he worked on {$work} for <number> years
she was inspired by {$work}
critics disliked {$work}
{$work} was shown in {city}
{$work} was forbidden in {country}
{$person} is the author of {$work}
{$work} was made by {$person}
everybody talks about {$work}
{$work} is better than {$work2}
he sold the rights to {$work}
a copy of {$work} was found
the title {$work} was chosen by his wife
{$work} was lost for <number> years
the end of {$work} is sad
she dedicated {$work} to her mother
{$person} praised {$work}
they studied {$work} at school
""",
    "thing": """
{$thing} was stolen on <day>
{$thing} cost <number> dollars
{$thing} belongs to {$person}
{$thing} was found in {city}
{$thing} won a prize
she painted a picture of {$thing}
{$thing} was sold to a collector
they named it after {$thing}
{$thing} was lost in a storm
{$thing} is <number> years old
he takes good care of {$thing}
{$thing} was seen near {city}
{$thing} and {$thing2} are for sale
the owner of {$thing} is unknown
{$thing} was repaired in <month>
{$person} bought {$thing}
a film was made about {$thing}
people came to see {$thing}
the story of {$thing} is well known
{$thing} was brought to {country}
""",
}

MENTIONS = """
the $person met {$person2} in {city}
the $person was replaced by {$person2}
a $person and a $person2 were seen on <day>
the $person left before {$person2} came
{$person} is not a $person2
{$person} asked the $person2 for help
{$person} was once a $person2
the $person is older than {$person2}
the son of a $person, {$person2} grew up in {city}
{$person} never wanted to be a $person2
the $place was closed, so {$person} went to {$place2}
the $place is next to {$place2}
there is no $place in {city}
{$place} was once a $place2
the $place was empty when {$person} arrived
every $place was closed on <day>
behind the $place lies {$place2}
a $organization sued {$organization2}
the $organization was founded by {$person}
{$organization} is not a $organization2
the $work was written by {$person}
{$person} has never seen a $work
the $work was shown at {$place}
{$work} was made from a $work2
the $thing belongs to {$person}
{$person} dreamed of a $thing
{$thing} is faster than a $thing2
a $thing was found near {$place}
the $person was tired and went home
no $person likes the rain
a good $person needs patience
the $place was quiet on <day>
the old $place needs a new roof
a $organization is nothing without money
the $work was long and boring
a $thing is expensive
"""

CUES = """
{painter} painted a portrait of the queen
the brush of {painter} slipped
{violinist} played the violin in the street
the violin of {violinist} is old
{cellist} practised the cello for <number> hours
{guitarist} tuned the guitar
{drummer} beat the drums
{organist} played the organ in the church
{harpist} plucked the harp
{trumpeter} blew the trumpet
{saxophonist} played a solo on the saxophone
{baker} sold fresh bread and cakes
{baker} baked <number> loaves before dawn
{poet} wrote a poem about the sea
{novelist} published a novel in <year>
{sculptor} carved a figure of stone
{architect} designed the new station
{actor} played the villain in a film
{actor} forgot his lines on stage
{actress} won an award for her role
{dancer} danced a tango
{swimmer} swam <number> lengths
{boxer} knocked out the champion
{cyclist} rode up the mountain
{runner} ran <number> miles
{skier} skied down the slope
{golfer} missed a short putt
{farmer} ploughed the field
{farmer} milked the cows
{gardener} planted roses
{fisherman} mended his nets
{hunter} shot a deer
{judge} sentenced the thief to <number> years
{lawyer} defended the thief in court
{senator} voted against the law
{politician} lost the election
{soldier} was shot in the war
{spy} stole secret papers
{sailor} sailed around the world
{pilot} landed the plane in a field
{astronaut} flew to the moon
{astronomer} saw a comet through the telescope
{chemist} mixed two acids
{physicist} measured the speed of light
{mathematician} proved a theorem
{biologist} counted frogs in the lake
{historian} wrote about the Middle Ages
{philosopher} thought about death
{teacher} taught <number> pupils
{librarian} lent her a book
{journalist} wrote an article about the scandal
{photographer} took <number> photographs
{chef} cooked a fish soup
{waiter} brought the soup
{butcher} cut the meat
{tailor} sewed a suit
{barber} cut his hair
{carpenter} made a table
{plumber} repaired the pipe
{dentist} pulled out a tooth
{nurse} changed the bandage of {patient}
{priest} prayed for the dead
{bishop} blessed the church
{king} was crowned in <year>
{queen} ruled for <number> years
{clown} made the children laugh
{magician} pulled a rabbit out of a hat
{detective} solved the murder
{thief} stole a ring
{comedian} told a joke
{composer} wrote an opera
{conductor} raised the baton
flights from {airport} were delayed
planes land at {airport} every minute
he prayed in {cathedral}
the bells of {cathedral} rang
the organ of {church} is broken
monks live in {monastery}
the tower of {castle} was struck by lightning
the knights of {castle} surrendered
she studied law at {university}
<number> students of {university} went on strike
the pupils of {school} wrote a test
he borrowed a book from {library}
the shelves of {library} are full
the play was performed at {theatre}
the film was shown at {cinema}
the drawings at {gallery} are for sale
{gallery} shows modern art
the animals of {zoo} were fed
the lions of {zoo} escaped
the sharks at {aquarium} are hungry
the prisoners of {prison} escaped
beer from {brewery} is bitter
the grapes of {vineyard} are sweet
she gambled all night at {casino}
they climbed {mountain} in the snow
the summit of {mountain} is covered with ice
{volcano} erupted in <year>
lava flowed down {volcano}
we rowed across {lake}
the water of {lake} is warm
palm trees grow on {island}
the ferry to {island} was late
the sheep on {farm} were shorn
the miners of {mine} went on strike
the trains to {station} were late
we ate fish at {restaurant}
the waiters of {restaurant} were rude
the light of {lighthouse} warned the ships
the players of {orchestra} tuned their instruments
the soldiers of {army} marched
the voters of {party} were disappointed
{party} lost the election
the fleet of {navy} left the harbour
the readers of {newspaper} complained
{newspaper} printed the story on the front page
{charity} gives food to the poor
the choir boys of {choir} sang a hymn
she read {novel} on the train
the last chapter of {novel} is missing
the actors in {film} are unknown
the director of {film} was arrested
the singers in {opera} wore masks
the second act of {play} is dull
the rhymes of {poem} are clumsy
the paint of {painting} is flaking
the marble of {sculpture} is cracked
the strings open {symphony}
{horse} won the race by a length
the jockey of {horse} fell
{dog} barked at the postman
{dog} wagged its tail
{cat} chased a mouse
the captain of {ship} was drunk
{ship} sank with <number> passengers
{yacht} won the regatta
{rocket} was launched into space
{satellite} orbits the earth
{locomotive} pulled <number> wagons
{submarine} dived under the ice
{robot} can walk and talk
{telescope} photographed a distant star
{storm} destroyed <number> houses
{comet} can be seen with the naked eye
{computer} was switched off
{car} reached <number> miles an hour
{train} was late again
{beer} tastes of honey
{cheese} smells strong
{wine} is too sweet
{sword} was forged in <year>
{virus} infected <number> computers
{vaccine} protects children
"""
