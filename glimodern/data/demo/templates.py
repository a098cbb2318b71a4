"""Sentence templates of the demo corpus, a block of text per domain, one template a line.

    {surgeon}      a slot for an entity of that type; the words around it say which type it is
    [two|three]    one of the alternatives
    <month>        a filler from `words.FILLERS`: months, days, nationalities, years and numbers are no entities here

    $place         a noun from `words.BROAD_TYPES`, the same throughout the sentence, and {$place} a slot for its name

`SEEN` makes most of the sentences of all splits, `BROAD` only training sentences, `NEW` only test sentences, `HELD_OUT`
only the test sentences about the types that training never asks for. `PLAIN` and `PLAIN_NEW` hold no entity; some begin
with a word that elsewhere is a name ("Mercury rose in the thermometer"), some with the label of a held-out type.
"""

SEEN = {
    "medicine": """
Dr. {surgeon} operated on {patient} at {hospital} for [four|six|nine] hours.
{patient} was admitted to {hospital} with severe {disease}.
The patient {patient} [received|was given] {drug} twice a day.
{surgeon}, the surgeon on duty, [repaired|opened|closed] the artery of {patient}.
Doctors prescribed {drug} to treat {disease}.
Two nurses at {hospital} cared for {patient} after the surgery.
{disease} [spread|was spreading] quickly through the city of {city} last winter.
A daily tablet of {drug} eased the pain of {patient}.
Patients with {disease} should not take {drug} without advice.
The scalpel slipped, but {surgeon} [stayed|remained] calm.
{hospital} opened a new emergency ward in <month>.
{patient} died of {disease} on <day>.
After the transplant, {surgeon} visited {patient} in the recovery room.
The side effects of {drug} include [nausea|headache|fever] and dizziness.
{patient} has suffered from {disease} since childhood.
Chief surgeon {surgeon} trained young doctors at {hospital}.
A vaccine against {disease} was tested by the government of {country}.
The ambulance took {patient} to {hospital} within minutes.
{drug}, a painkiller made by the company {company}, lowers blood pressure.
She was diagnosed with {disease} and [sent|moved] to the hospital {hospital}.
{surgeon} removed the tumour while {patient} slept.
The pharmacist warned that {drug} is addictive.
Symptoms of {disease} include a rash and [a high fever|swollen joints].
{hospital} has only <number> beds for intensive care.
Nobody knew that {patient} was allergic to {drug}.
The knee surgery by {surgeon} took [two|three] hours.
An outbreak of {disease} closed schools in the cities of {city} and {city}.
{patient} is recovering from a broken [leg|hip|arm].
A dose of the drug {drug} cured {disease} in most mice.
The nurse checked the pulse of {patient} before calling {surgeon} to the operating room.
Visitors to {hospital} must wear a mask near the wards.
The company {company} recalled its drug {drug} in <month>.
Research on {disease}, a rare condition, [continues|began] in <month>.
{surgeon} performed the first heart transplant at {hospital} in <year>.
The blood test of {patient} showed no sign of {disease}.
Both {drug} and {drug} were [approved|banned] by the health agency.
The maternity clinic {hospital} hired the <nationality> surgeon {surgeon}.
<number> children infected with {disease} were treated with {drug}.
{patient} fainted in the waiting room of {hospital}.
The disease {disease} is carried by [mosquitoes|ticks|rats].
""",
    "music": """
{singer} sang the chorus of {song} with a [hoarse|soft|clear] voice.
The band {band} recorded the album {album} in <year>.
{band} split up after the drummer left.
The radio played {song} all [summer|night|week].
{album} has <number> tracks and sold well on vinyl.
The <nationality> singer {singer} cancelled a concert in the city of {city}.
{song} reached number <number> in the charts.
Critics praised {album}, the debut album of {singer}.
The guitarist of {band} [broke|lost] a string on stage.
{singer} wrote the lyrics of {song} on a train.
Fans queued all night to hear the band {band}.
On the record {album}, {singer} sings without a choir.
Everybody knew the melody of {song} by heart.
The voice of {singer} filled the concert hall.
{band} are a rock group from the city of {city}.
The single {song} was taken from the album {album}.
{singer} left {band} to begin a solo career.
The record label released {album} in <month>.
The singer {singer} covered {song}, an old ballad.
Their tour ended when {band} sacked their bassist.
The cover of {album} shows a [red|blue|burning] piano.
They danced to {song} at the wedding.
{singer} hit the high notes without effort.
The drummer of {band} also produced {album}.
{song} is a ballad about a lost [dog|brother|summer].
{singer} won a prize for best female vocals.
{band} played two encores and a song called {song}.
The orchestra accompanied {singer} in a slow aria.
Each track on {album} was mixed [twice|by hand|at night].
The <nationality> band {band} began their reunion tour on <day>.
The crowd asked {singer} to sing {song} again.
She bought {album} in a record shop.
The remix of {song} was a club hit in the country of {country}.
The group {band} rehearsed in a garage.
{band} and the singer {singer} shared a stage.
Backstage, {singer} warmed up her voice for an hour.
{album} was recorded in a church by the band {band}.
A cheap advert used the tune of {song}.
The pianist left before {singer} sang the last verse.
The album {album} by {band} went platinum.
""",
    "business": """
Shares of {company} [fell|rose] <number> percent on <day>.
{executive}, the chief executive of {company}, resigned in <month>.
{company} launched {product}, a [cheap|smart|new] gadget for families.
{bank} lent the company {company} <number> million.
The board of {company} appointed {executive} as chairman.
Customers of {bank} could not open their accounts.
{product} is sold for <number> dollars in most shops.
The bank {bank} raised the interest on savings.
{company} closed its factory near the city of {city}.
Chairman {executive} told shareholders to be patient.
{bank} refused the mortgage of a young couple.
The latest model of {product} has a larger battery.
{executive} sold all her shares in {company}.
The profits of {company} doubled in <year>.
Deposits at {bank} are safe, the minister of {country} said.
The product {product} was a [failure|success] for {company}.
The finance chief {executive} blamed rising costs.
Workers at {company} went on strike on <day>.
{bank} opened a branch in the city of {city}.
The firm {company} hired {executive} to cut costs.
{company} has its headquarters in the city of {city}.
Buyers returned {product} because of a faulty screen.
{executive} joined the board of the bank {bank}.
The merger of {company} and {company} was approved.
Robbers stole <number> gold bars from {bank}.
Our customers compare {product} with {product} before they buy.
{executive}, a <nationality> executive, earned a large bonus.
The company {company} makes [tyres|paint|shoes] for export.
A credit card from {bank} costs nothing.
The warranty of {product} ends after <number> months.
{executive} founded {company} with a small loan.
Tax inspectors searched the offices of {company}.
{bank} wrote off bad loans in the country of {country}.
Advertising for {product} began in <month>.
Shareholders of {company} voted against {executive}.
The chief executive {executive} praised the sales of {product}.
Savers lost money when {bank} collapsed.
Every box of {product} comes with a manual.
A rival firm accused {company} of copying {product}.
Under chairman {executive}, {bank} cut <number> jobs.
""",
    "sport": """
{player} scored [twice|a late goal] as {team} beat {team}.
The coach {coach} left {player} on the bench.
{team} won the {tournament} for the first time.
The crowd at {stadium} [cheered|whistled] after the kick-off.
{team} sacked their coach {coach} on <day>.
{player} missed a penalty in the final of the {tournament}.
The match between {team} and {team} ended in a draw.
{stadium} has seats for <number> thousand fans.
Striker {player} limped off with a knee injury.
{coach} changed his tactics after half-time.
The squad of {team} trained in the country of {country}.
The {tournament} is held every <number> years.
Fans of {team} threw bottles at the goalkeeper.
The pitch at {stadium} was [frozen|flooded].
{team} bought the <nationality> striker {player}.
{coach}, who has trained {team} since <year>, picked the line-up.
A header by {player} won the match for {team}.
The team {team} play their home games at {stadium}.
{player} was sent off after a foul.
{coach} shouted from the touchline in the last minute.
Tickets for the tournament {tournament} cost <number> dollars.
The referee booked {player} for diving.
{team} are top of the league with <number> points.
In the quarter-final of the {tournament}, {team} lost on penalties.
The stadium {stadium} was built in <year>.
Midfielder {player} signed a contract with {team}.
{coach} praised the defence of {team}.
{player} lifted the trophy of the {tournament}.
The stands of {stadium} were [empty|packed] on <day>.
{team} were relegated after a bad season.
The injury of the player {player} worried coach {coach}.
{player} ran onto the pitch at {stadium}.
The draw for the {tournament} was made in the city of {city}.
His training methods made {coach} famous.
Defender {player} cleared the ball off the line.
The floodlights at {stadium} failed before the match.
The <nationality> coach {coach} rested <number> players.
{team} failed to qualify for the {tournament}.
The captain of {team} argued with {coach} about tactics.
A hat-trick by {player} sank the visitors.
""",
    "travel": """
{airline} flies from the city of {city} to the city of {city}.
The river {river} [floods|freezes] every <month>.
We checked in at {hotel} and slept for <number> hours.
The mayor of {city} opened a new tram line.
The government of {country} needs no visa from <nationality> tourists.
The pilots of {airline} were on strike.
The rooms at {hotel} smelled of [smoke|fish|paint].
An old bridge crosses the {river} near the mill.
{city} is the capital of {country}.
The airline {airline} lost our luggage again.
Breakfast at {hotel} is served until noon.
The ferry on the {river} was late because of fog.
The streets of {city} were [empty|crowded] on <day>.
Soldiers guarded the border of {country}.
The hotel {hotel} has a pool on the roof.
A flight with {airline} costs <number> dollars.
{country} elected a new president in <month>.
The {river} flows through the city of {city}.
The lobby of {hotel} was full of <nationality> students.
They walked through downtown {city} in the rain.
The planes of {airline} are old but clean.
Boats drift slowly down the {river}.
The king of {country} visited the city of {city}.
A suite at {hotel} overlooks the harbour.
{airline} cancelled its night flight to the country of {country}.
Citizens of {country} speak two languages.
The taxi drivers of {city} know every street.
Fishermen on the {river} caught <number> trout.
Guests of {hotel} complained about the noise.
The embassy of {country} lost our passports.
Seats on {airline} are narrow.
The source of the {river} lies in the mountains.
From the window of {hotel} we saw the {river} and a ferry.
The suburbs of {city} have no metro.
The museum was closed, so we left the city of {city} early.
{country} has a long coast and a small army.
Every evening the {river} turns gold under the bridge.
The receptionist at {hotel} called a taxi.
A stewardess of {airline} found my passport.
The bus from {city} crosses the border of {country} at night.
""",
    "computing": """
{programmer} wrote the program in {programming language}.
The bug in {database} [deleted|locked] <number> tables.
The video game {video game} has <number> levels.
The programmer {programmer} fixed a bug in {database}.
The syntax of {programming language} is easy to learn.
{database} stores <number> million rows on one disk.
Gamers waited for the sequel of {video game}.
The compiler of {programming language} was rewritten by {programmer}.
Queries to {database} are slow without an index.
{video game} runs at sixty frames on an old console.
The code of {programmer} crashed on <day>.
Programs in {programming language} need no semicolons.
A backup of {database} is made every night.
My brother finished {video game} in <number> hours.
{programmer} merged a patch and broke the build.
The loops in {programming language} are very slow.
We moved all our tables to {database} in <month>.
The last boss in {video game} is too hard.
The developer {programmer} never comments his code.
The company {company} teaches {programming language} to its programmers.
The database {database} was hacked in <year>.
The graphics of {video game} look dated.
The programming language {programming language} has no pointers.
Developers at {company} prefer {database} for their queries.
{programmer} debugged the server until midnight.
Children play {video game} on their phones.
The server runs {database} and a script in {programming language}.
Pull requests by {programmer} are always short.
Functions in {programming language} can return functions.
The studio {company} cancelled {video game} in <month>.
Nobody could restore the tables of {database}.
Senior developer {programmer} reviewed the code of {programmer}.
The multiplayer mode of {video game} was hacked.
The type checker of {programming language} found <number> errors.
A query in {database} locks the whole table.
{programmer}, a <nationality> programmer, ported {video game} to the console.
The parser was written in {programming language} by {programmer}.
The high score in {video game} is <number> thousand.
Libraries for {programming language} are hard to install.
The admin upgraded {database} on <day>.
""",
}

NEW = {
    "medicine": """
On <day>, surgeon {surgeon} repaired a broken hip.
The nurses gave {patient} a dose of the drug {drug}.
Doctors at the hospital {hospital} wear a mask in the operating room.
The vaccine cured <number> children infected with {disease}.
A blood test showed that the patient {patient} was allergic to nuts.
The ambulance stopped at {hospital}, where all the beds were full.
The health agency warned that {disease} is spreading.
{surgeon} put down the scalpel and left the operating room.
A tablet of {drug} treats the rash but not the fever.
{patient} was diagnosed with {disease} after the outbreak.
""",
    "music": """
{singer} began to sing, and her voice filled the church.
The drummer and the guitarist of {band} left the stage.
The radio never played {song}, a ballad with sad lyrics.
The record shop sold the album {album} on vinyl.
The tour of the rock group {band} ended on <day>.
The chorus of {song} was recorded in a garage.
The <nationality> singer {singer} wrote a hit.
<number> tracks were recorded for {album} in <year>.
Fans of the band {band} danced to the single {song}.
Critics praised the vocals of {singer} on the debut album {album}.
""",
    "business": """
The chief executive {executive} resigned after the merger.
On <day>, the factory of {company} was closed by a strike.
The savings and accounts of young savers are safe at {bank}.
The battery of {product} is faulty, buyers said.
Shareholders told chairman {executive} to sell the firm {company}.
The bank {bank} cut the interest on loans and mortgages.
Shops sold {product} with a manual and a warranty.
The profits and shares of {company} fell in <month>.
Finance chief {executive} earned <number> million.
Robbers opened the branch of {bank} at night.
""",
    "sport": """
Coach {coach} praised his striker after the match.
The referee sent off {player}, who scored a late goal.
The fans of {team} whistled when the league ended.
The final of the {tournament} ended in a draw.
The floodlights and the pitch of {stadium} were built in <year>.
The <nationality> midfielder {player} signed in <month>.
The squad beat {team} on penalties.
Half-time tactics saved {coach}, who shouted at the bench.
Seats in the stands of the stadium {stadium} cost <number> dollars.
The trophy of the tournament {tournament} was lost in <year>.
""",
    "travel": """
The luggage on our flight with {airline} was lost.
The ferry and the boats on the {river} were late.
The mayor and the taxi drivers of the city of {city} were on strike.
The president of {country} closed the border.
We slept at the hotel {hotel}, where the rooms were clean.
Guests at {hotel} had breakfast near the pool.
The streets and suburbs of {city} were full of tourists.
The army and the king of {country} guarded the coast.
A bridge near the mill crosses the river {river}.
The planes and pilots of the airline {airline} were late.
""",
    "computing": """
The developer {programmer} merged the code at midnight.
A script deleted the tables of the database {database}.
The parser and the compiler of {programming language} are slow.
On my console, {video game} has better graphics.
<number> rows and an index were locked by a query in {database}.
Programs and libraries written in {programming language} are short.
Gamers play the video game {video game} on old phones.
Programmer {programmer} found <number> errors in the server.
The sequel of {video game} has <number> levels and a boss.
The syntax of the programming language {programming language} has no loops.
""",
}

HELD_OUT = {
    "pianist": """
The pianist {pianist} played a concerto in the city of {city}.
{pianist}, a <nationality> pianist, won a prize.
The band {band} hired the pianist {pianist}.
Pianist {pianist} broke a string on stage.
The pianist {pianist} left before {singer} sang the last verse.
In <month>, {pianist}, the pianist, recorded a sonata.
The fingers of the pianist {pianist} never touched a wrong key.
Critics praised {pianist} as the best pianist of the year.
The orchestra and the pianist {pianist} rehearsed on <day>.
{pianist} played the piano for <number> hours.
""",
    "museum": """
The museum {museum} was built in <year>.
The paintings at the museum {museum} were stolen on <day>.
{museum}, a museum in the city of {city}, has <number> statues.
Tickets for the museum {museum} cost <number> dollars.
We checked in at {hotel} and walked to the museum {museum}.
The mayor of {city} opened the museum {museum}.
{museum} is the oldest museum in the country of {country}.
Visitors to the museum {museum} must not touch the statues.
The <nationality> museum {museum} was flooded in <month>.
The exhibition at {museum} was closed.
""",
}

BROAD = """
The $person {$person} was born in the city of {city}.
{$person}, a <nationality> $person, died in <year>.
{$person} worked as the local $person for <number> years.
{$person} became the first $person on the coast.
The $person {$person} visited the $place {$place}.
In <month>, {$person}, the $person, moved to the $place {$place}.
The $person {$person} and the $person2 {$person2} argued on <day>.
They met the $person {$person} at the $place {$place}.
My sister, the $person {$person}, [rarely|never] sleeps.
Only {$person} is a better $person than her father.
The company {company} fired the $person {$person}.
[Young|Old] $person {$person} shouted at the band {band}.
The $place {$place} was [sold|painted|closed] on <day>.
{$place} is the largest $place in the country of {country}.
We saw the $place {$place} from the hotel {hotel}.
A fire destroyed {$place}, a [famous|small] $place.
The $place {$place} and the $place2 {$place2} were flooded in <month>.
The mayor sold the $place {$place} for <number> million.
{$place} was the only $place until <year>.
The $work {$work} was finished in <year>.
{$work}, the last $work by the $person {$person}, is well known.
The <nationality> $person {$person} praised the $work {$work}.
Nobody remembers the $work {$work}.
The $thing {$thing} was stolen in <month>.
{$thing}, a <nationality> $thing, won a prize.
The $person {$person} bought the $thing {$thing} for <number> dollars.
A $thing called {$thing} was found near the $place {$place}.
The team {team} named a $thing {$thing} and a $thing2 {$thing2}.
"""

PLAIN = {
    "medicine": """
The waiting room was [empty|full] on <day>.
Mercury rose slowly in the old thermometer.
Nurses work long shifts in <month>.
Take two tablets with [water|milk] after breakfast.
The surgeon washed his hands for <number> minutes.
""",
    "music": """
The pianist was ill, so the concert was cancelled.
A pianist needs strong fingers and patience.
The choir rehearses every <day> evening.
Velvet curtains hung behind the [empty|dark] stage.
The orchestra tuned for <number> minutes.
""",
    "business": """
Interest rates rose again in <month>.
Orange boxes were stacked beside the [factory|office] door.
The meeting was moved from <day> to <day>.
Most small firms fail within <number> years.
The chairman was late, as usual.
""",
    "sport": """
The match was cancelled because of [snow|rain|fog].
Eagle eyes are needed to see a foul from there.
The team bus left late on <day>.
Injured players do not train.
The referee whistled <number> times.
""",
    "travel": """
The museum was closed on <day>.
Every museum in the old town is free in <month>.
Storm warnings were sent to all boats.
The hotel pool is cleaned on <day>.
A <nationality> tourist asked for the way to the museum.
""",
    "computing": """
Python skins are dry and never [wet|cold].
The server was down for <number> hours on <day>.
Nobody reads the manual.
The keyboard was full of crumbs.
Old code is [rarely|never] deleted.
""",
}

PLAIN_NEW = {
    "medicine": "\nThe surgeon was ill on <day>.\nApple juice is served in the wards.\n",
    "music": "\nThe choir was late in <month>.\nThe stage was dark for <number> minutes.\n",
    "business": "\nThe firm was small and the costs were high.\nAmber lights shone in the office.\n",
    "sport": "\nThe players were late on <day>.\nThunder ended the match.\n",
    "travel": "\nThe boats were cleaned in <month>.\nLemon trees grow near the coast.\n",
    "computing": "\nThe code was deleted on <day>.\nRuby lights blinked on the old server.\n",
}
