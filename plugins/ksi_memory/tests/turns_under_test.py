"""A hundred turns as users write them: what must be kept of each, and what must not.

A row is what the user wrote, and what is to be remembered: the keys with what their texts say.
"""

from typing import Final

Expected = dict[str, str]

CODE: Final = """Why does this fail?
```python
name = "my name is Bob"
def main():
    # remember that I live in Berlin
    print("I prefer tabs")
```
"""
LOG: Final = """2026-03-01 12:00:01 ERROR my name is Bob
Traceback (most recent call last):
  File "main.py", line 3, in <module>
ValueError: I live in Berlin
"""
TABLE: Final = """| user | note |
|---|---|
| bob | I live in Berlin |
"""
DIFF: Final = """diff --git a/x b/x
@@ -1 +1 @@
- name = "my name is Bob"
+ name = "my name is Eve"
"""
MAIL: Final = """Please proofread this mail:

Dear Ms Keller,
my name is Bob Hill and I live in Berlin. I prefer mornings.
"""
QUOTED: Final = """> my name is Bob
> I live in Berlin
What do you make of this mail?"""
STORY: Final = """Write a short story that begins like this:
My name is Ishmael. I live in Nantucket and I love whales."""
PASTED: Final = "<document>My name is Bob. I live in Berlin.</document> Is this person German?"

KEPT: Final[tuple[tuple[str, Expected], ...]] = (
    # -- asked for in so many words
    (
        "Remember that our wifi network is called Bluebird.",
        {"note:wifi-network": "wifi network is called Bluebird"},
    ),
    (
        "Please remember that the spare key is under the third flower pot.",
        {"note:spare-key": "under the third flower pot"},
    ),
    (
        "Remember: the bins are collected on Thursdays.",
        {"note:bins": "bins are collected on Thursdays"},
    ),
    (
        "Can you remember that I live in Porto?".replace("?", "."),
        {"user:home": "lives in Porto"},
    ),
    ("Please remember that my name is Anna.", {"user:name": "name is Anna"}),
    ("Don't forget that Lena can't eat nuts.", {"note:lena-cant-eat-nuts": "can't eat nuts"}),
    (
        "Keep in mind that our budget is 4,000 euros.",
        {"note:budget": "4,000 euros"},
    ),
    ("Note that the office closes at six.", {"note:office-closes-at-six": "closes at six"}),
    (
        "Make a note that the car needs new tyres before winter.",
        {"note:car": "needs new tyres"},
    ),
    (
        "Remember my shoe size is 43.",
        {"user:shoe-size": "43"},
    ),
    (
        "I want you to remember that I never work on Fridays.",
        {"user:habit:work-on-fridays": "never work on Fridays"},
    ),
    (
        "For future reference: the staging server runs in Frankfurt.",
        {"note:staging-server-runs-in-frankfurt": "runs in Frankfurt"},
    ),
    (
        "Note to self: the landlord prefers letters over mails.",
        {"note:landlord-prefers-letters-over-mails": "letters over mails"},
    ),
    # -- who the user is
    ("My name is Anna.", {"user:name": "name is Anna"}),
    ("my name is anna, nice to meet you", {"user:name": "Anna"}),
    ("Hi there! I'm Anna Lindqvist.", {"user:name": "Anna Lindqvist"}),
    ("Hello, I am Jonas and I need help with my taxes.", {"user:name": "Jonas"}),
    ("Call me Max, please.", {"user:called": "called Max"}),
    ("Actually, my name is Anne, with an e.", {"user:name": "Anne"}),
    ("My pronouns are they/them.", {"user:pronouns": "they/them"}),
    ("My birthday is 3 May 1988.", {"user:birthday": "3 May 1988"}),
    ("I was born on 12 June 1979.", {"user:birthday": "12 June 1979"}),
    ("My email is anna@example.org", {"user:e-mail": "anna@example.org"}),
    ("My native language is Swedish.", {"user:native-language": "Swedish"}),
    ("My time zone is Europe/Lisbon.", {"user:timezone": "Europe/Lisbon"}),
    # -- where and what
    ("I live in Porto.", {"user:home": "lives in Porto"}),
    ("I moved to Lisbon last month.", {"user:home": "lives in Lisbon"}),
    ("I live in Porto and work a lot.", {"user:home": "lives in Porto."}),
    ("We're based in Utrecht these days.", {"user:home": "lives in Utrecht"}),
    ("I no longer live in Porto.", {"user:home": "no longer lives in Porto"}),
    ("I don't live in Porto anymore.", {"user:home": "no longer lives in Porto"}),
    ("I'm from Norway, by the way.", {"user:origin": "Norway"}),
    ("I work at Nordwind as a designer.", {"user:employer": "Nordwind"}),
    ("I work as a nurse in a children's hospital.", {"user:job": "nurse"}),
    ("I'm a software engineer, so you can be technical.", {"user:job": "software engineer"}),
    ("I joined Acme in January.", {"user:employer": "Acme"}),
    ("I'm a vegetarian.", {"user:diet": "vegetarian"}),
    ("I'm allergic to peanuts.", {"user:allergy:peanuts": "allergic to peanuts"}),
    ("I'm left-handed.", {"user:left-handed": "left-handed"}),
    ("I don't eat meat.", {"user:habit:eat-meat": "doesn't eat meat"}),
    # -- what the user wants
    (
        "I prefer tea over coffee.",
        {"user:prefers:coffee-or-tea": "prefers tea to coffee"},
    ),
    (
        "Actually I prefer coffee to tea now.",
        {"user:prefers:coffee-or-tea": "prefers coffee to tea"},
    ),
    ("I prefer window seats.", {"user:prefers:window-seats": "prefers window seats"}),
    ("I'd prefer short answers.", {"user:prefers:short-answers": "short answers"}),
    ("I love jazz.", {"user:likes:jazz": "loves jazz"}),
    ("I can't stand coriander!", {"user:likes:coriander": "can't stand coriander"}),
    ("I always use metric units.", {"user:habit:use-metric-units": "always use metric units"}),
    ("From now on, answer in German.", {"user:language": "answers in German"}),
    (
        "Never use emojis in your answers.",
        {"user:wants:use-emojis-in-your": "never use emojis"},
    ),
    ("Always call me by my first name.", {"user:wants:call-me-by-my": "by my first name"}),
    ("My favorite color is teal.", {"user:favourite-color": "teal"}),
    ("Our default currency is EUR.", {"user:default-currency": "EUR"}),
    # -- people and things
    (
        "My wife's name is Clara.",
        {"user:wife": "Clara", "Clara": "Clara is the user's wife"},
    ),
    (
        "My daughter Lena starts school in autumn.",
        {"user:daughter:lena": "Lena", "Lena": "the user's daughter"},
    ),
    (
        "I had lunch with my colleague Jonas Weber.",
        {"user:colleague:jonas-weber": "Jonas Weber", "Jonas Weber": "colleague"},
    ),
    ("Our dog is called Bruno.", {"user:dog:bruno": "Bruno", "Bruno": "the user's dog"}),
    ("I'm working on project Falcon.", {"Falcon": "project of the user's"}),
    # -- days
    (
        "My dentist appointment is on 14 March.",
        {"date:dentist-appointment": "14 March"},
    ),
    ("The deadline for the grant is 2026-05-20.", {"date:deadline-for-the-grant": "2026-05-20"}),
    (
        "The deadline for the grant moved to 27 May.",
        {"date:deadline-for-the-grant": "27 May"},
    ),
    ("I have an exam on Friday.", {"date:exam": "exam on Friday"}),
    ("We're flying to Oslo tomorrow.", {"date:flying-to-oslo": "flying to Oslo"}),
    # -- among other things
    (
        "Thanks, that works! By the way, I moved to Lisbon.",
        {"user:home": "lives in Lisbon"},
    ),
    (
        "Could you find me a good café? I live in Porto and I prefer quiet places.",
        {"user:home": "lives in Porto", "user:prefers:quiet-places": "quiet places"},
    ),
    (
        "Here is the code:\n```\nx = 1\n```\nRemember that we deploy on Tuesdays.",
        {"note:we-deploy-on-tuesdays": "deploy on Tuesdays"},
    ),
)

DROPPED: Final[tuple[str, ...]] = (
    # -- pleasantries
    "Hi!",
    "Good morning, how are you today?",
    "thanks a lot!",
    "Perfect, thank you so much",
    "ok",
    "Great, that works now. Cheers!",
    "lol yes",
    "See you tomorrow!",
    # -- questions
    "What is my name?",
    "Do you remember that restaurant in Porto?",
    'Can I say "my name is Bob" in an interview?',
    "Is it true that I prefer tea over coffee?",
    "Where do I live?",
    "Should I always use tabs?",
    # -- code, logs, what was pasted
    CODE,
    LOG,
    TABLE,
    DIFF,
    MAIL,
    QUOTED,
    STORY,
    PASTED,
    'Translate into French: "My name is Paul and I live in Lyon."',
    "const name = 'my name is Bob';",
    "$ git commit -m 'remember that I live in Berlin'",
    # -- supposed, or said by others
    "If my name is Bob, what are my initials?",
    "Suppose I live in Berlin. How much tax would I pay?",
    "Imagine my name is Ishmael.",
    "She said: my name is Clara.",
    "He told me that I prefer tea over coffee.",
    "I used to live in Berlin.",
    "Let's say my birthday is 3 May.",
    # -- of no use later
    "I'm tired.",
    "I'm not sure.",
    "I like it.",
    "I love that idea!",
    "I prefer the second one.",
    "I prefer this.",
    "My code is not working.",
    "My question is about the invoice.",
    "I always get this error.",
    "Remember that?",
    "Remember to run the tests.",
    "Remember that it is slow.",
    "I'm here.",
    "I'm German.",
    "Fix the bug in main.py and run the tests.",
    "Summarize the article in three bullet points.",
    "Make it shorter.",
    "exit code 1",
    "3 passed, 1 failed",
    "The meeting was fine.",
    # -- secrets, and what is not to be kept
    "Remember that my password is hunter2.",
    "My api key is sk-abcdefghijklmnop1234",
    "Remember that my credit card is 4111 1111 1111 1111.",
    "Off the record: I live in Berlin.",
    "My name is Bob, but don't remember that.",
)
