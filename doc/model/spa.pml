/* The exchange of SPA v1 as one server sees it: who gets a grant, and how
 * often, while datagrams are delayed, copied, reordered and sent from other
 * addresses, and while the daemon is killed and the power fails between any two
 * of its steps. README.md says what is assumed; `check` runs everything.
 *
 * A rule is taken out with -D and its NO_… name; a promise then has to break.
 */

/* ---- Sizes ---- */
#ifndef REQUESTS
#define REQUESTS 3          /* requests that clients ever sign */
#endif
#ifndef REMEMBERED
#define REMEMBERED 2        /* "the last 64 accepted", per key */
#endif
#ifndef WINDOW
#define WINDOW 1            /* "±60 s", in ticks */
#endif
#ifndef END
#define END 2               /* the server's clock runs from 1 to END */
#endif
#ifndef KEYS
#define KEYS 1              /* allowed keys */
#endif
#ifndef PROMISED
#define PROMISED 0          /* the one promise to look at; 0: all of them */
#endif

#define LATEST (END + WINDOW + 1)   /* the newest stamp a client may write */
#define ALIEN  REQUESTS             /* the place of a datagram that no client made */

/* A promise is an assertion. A chance is the opposite: something that has to be
 * possible, looked at alone, where spin has to find the assertion broken. */
#define PROMISE(n, e) assert(PROMISED != 0 && PROMISED != n || (e))
#define CHANCE(n, e)  assert(PROMISED != n || !(e))

/* ---- What clients signed ----
 * "time, …, for which address (observed or stated), the signer's key". A client's
 * clock is any clock at all: two machines with one key may be apart by whatever
 * the stamps can hold. All are on the wire from the first tick, because what an
 * observer holds back and what was not sent yet look alike to the server. */
byte stamp[REQUESTS + 1];
byte key[REQUESTS + 1];
bool stated[REQUESTS + 1];          /* the stated address is the client's own */

/* ---- What outlives a process ----
 * A line or a mark that is only cached survives kill -9; with the power it may go
 * or stay, each by itself, as the kernel writes back in what order it likes. */
mtype = { missing, cached, synced };
mtype line[REQUESTS + 1] = missing; /* the journal: one line per accepted request */
byte barrier;                       /* the journal's line that bars stamps up to here; 0: none */
bool mark = true, markOnDisk = true; /* of a clean stop; nothing was lost before the first start */
bool sameBoot;                      /* the state directory names this very boot */

/* ---- The server's memory ---- */
bool known[REQUESTS + 1];           /* remembered (time, tag) pairs; the tag is the index */
byte barred;                        /* stamps up to here are refused; 0: none */
bool complete;                      /* nothing of the journal can have been lost */

/* ---- The datagram in hand ---- */
mtype = { nobody, allowed, stranger, forger };
mtype signer = nobody;              /* forger: names an allowed key and has no signature of it */
#define CLIENT   1
#define ATTACKER 2
byte req, src, at;                  /* which, from where, and the clock's one reading for it */
bool fresh;

/* ---- The world ---- */
byte now = 1;                       /* the server's wall clock */
mtype = { up, killed, blackout };
mtype power = up;

/* ---- What the promises need to remember ---- */
byte grants[REQUESTS + 1];
byte first[REQUESTS + 1];           /* whose delivery was the first to be taken for good */
byte newest[KEYS];                  /* the newest stamp granted, of each key */
#if PROMISED == 12
bool aheadGotIn;
#endif
#if PROMISED == 13 || PROMISED == 15
byte began; bool wasKilled, wasStopped;
#endif

/* Scratch of one d_step, no part of any state: spin does not restore it when it
 * goes back, so what chooses must not use it. */
hidden byte i, n, oldest;

/* ==== Receiving ==== */

/* Anything that was ever sent arrives, as often as it likes and from whatever
 * address; so does what strangers make up. */
inline receive() {
	select(req : 0 .. REQUESTS);
	if
	:: src = CLIENT
	:: src = ATTACKER
	fi;
	if
	:: req < REQUESTS -> signer = allowed
	:: req == ALIEN -> signer = stranger; stamp[ALIEN] = now
	:: req == ALIEN -> signer = forger; stamp[ALIEN] = now
	fi;
	at = now;
}

/* Back to nothing in hand, so that refused datagrams leave no state behind. */
inline drop() { signer = nobody; req = 0; src = 0; at = 0; fresh = false; stamp[ALIEN] = 0; }

/* n: how many of this key are remembered; oldest: the oldest stamp of these. */
inline survey(k) {
	n = 0; oldest = 255;
	for (i : 0 .. REQUESTS) {
		if
		:: known[i] && key[i] == k ->
			n++;
			if
			:: stamp[i] < oldest -> oldest = stamp[i]
			:: else
			fi
		:: else
		fi
	}
}

#define REFUSE(rule) if :: (rule) -> fresh = false :: else fi

inline judge() {
	fresh = true;
#ifndef NO_KEY
	REFUSE(signer == stranger);                 /* "key lookup" */
#endif
#ifndef NO_SIGNATURE
	REFUSE(signer == forger);                   /* "signature" */
#endif
#ifndef NO_ADDRESS
	REFUSE(stated[req] && src != CLIENT);       /* "the client states its address" */
#endif
#ifdef COUNTER
#ifndef NO_RISING
	/* clock = "none": greater than every remembered one of its key. */
	for (i : 0 .. REQUESTS) {
		REFUSE(known[i] && key[i] == key[req] && stamp[req] <= stamp[i])
	}
#endif
#else
#ifndef NO_PAST
	REFUSE(stamp[req] + WINDOW < at);           /* "a window (default ±60 s)" */
#endif
#ifndef NO_FUTURE
	REFUSE(stamp[req] > at + WINDOW);
#endif
	REFUSE(stamp[req] <= barred);               /* "refuse stamps up to max(start, newest stamp)" */
#endif
#if !defined(COUNTER) || defined(NO_RISING)
#ifndef NO_REPEAT
	REFUSE(known[req]);                         /* "refused are repeats" */
#endif
#ifdef SAME_STAMP
	/* The program is stricter: one key's two requests can't share a stamp. */
	for (i : 0 .. REQUESTS) {
		REFUSE(known[i] && key[i] == key[req] && stamp[i] == stamp[req])
	}
#endif
#ifndef NO_OLDEST
	/* "and anything older than the oldest remembered once it is full" */
	survey(key[req]);
#ifdef STRICTLY_OLDER
	REFUSE(n == REMEMBERED && stamp[req] < oldest);
#else
	REFUSE(n == REMEMBERED && stamp[req] <= oldest);
#endif
#endif
#endif
}

/* ==== Accepting ==== */

/* One more is remembered; the oldest of more than REMEMBERED goes. */
inline remember(r) {
	known[r] = true;
	survey(key[r]);
	if
	:: n > REMEMBERED ->
		for (i : 0 .. REQUESTS) {
			if
			:: known[i] && key[i] == key[r] && stamp[i] == oldest -> known[i] = false; oldest = 255
			:: else
			fi
		}
	:: else
	fi
}

/* From here on no other delivery of this request may count. Not sooner: with the
 * power a line that waits for its sync may go, and then nobody has had a grant. */
inline take() {
	if
	:: first[req] == 0 -> first[req] = src
	:: else
	fi
}

inline writeLine() {
#ifndef NO_JOURNAL
	line[req] = cached
#else
	skip
#endif
}

inline syncJournal() {
	for (i : 0 .. REQUESTS) {
		if
		:: line[i] == cached -> line[i] = synced
		:: else
		fi
	};
	skip
}

/* "A stamp ahead of the server's clock, and every counter of clock = none, is
 * fdatasync'ed before its grant; nothing else needs to be." */
inline syncIfAhead() {
#if defined(SYNC_ALL) || (defined(COUNTER) && !defined(NO_COUNTER_SYNC))
	d_step { syncJournal() }
#elif !defined(COUNTER) && !defined(NO_FUTURE_SYNC)
	if
	:: d_step { stamp[req] > at -> syncJournal() }
	:: stamp[req] <= at
	fi
#else
	skip
#endif
}

inline grant() {
	d_step {
		take();
		if
		:: grants[req] < 2 -> grants[req]++
		:: else
		fi;
		PROMISE(1, signer == allowed);
		PROMISE(2, grants[req] == 1);
#ifdef COUNTER
		PROMISE(3, stamp[req] > newest[key[req]]);
		newest[key[req]] = stamp[req];
#else
		PROMISE(3, at <= stamp[req] + WINDOW && stamp[req] <= at + WINDOW);
#endif
		PROMISE(4, !stated[req] || src == CLIENT);
		PROMISE(5, stated[req] || src == first[req]);
		CHANCE(11, true);
#if PROMISED == 12
		CHANCE(12, aheadGotIn && stamp[req] < at);
		aheadGotIn = aheadGotIn || stamp[req] > at;
#endif
#if PROMISED == 13
		CHANCE(13, wasKilled && stamp[req] < began);
#endif
		CHANCE(14, barred > 0);
#if PROMISED == 15
		CHANCE(15, wasStopped && stamp[req] < began);
#endif
	}
}

/* "The journal line is written before the grant." */
inline accept() {
#if defined(NO_LINE_FIRST)
	grant(); writeLine(); syncIfAhead();
#elif defined(NO_SYNC_FIRST)
	writeLine(); grant(); syncIfAhead();
#else
	writeLine(); syncIfAhead();
#endif
	d_step { remember(req); take() };
#if !defined(NO_LINE_FIRST) && !defined(NO_SYNC_FIRST)
	grant();
#endif
	d_step { drop() }
}

/* ==== Starting and stopping ==== */

/* "Same boot id at start: the journal is complete", and it is after a clean stop. */
inline readState() {
	complete = sameBoot || mark;
	barred = barrier;
	for (i : 0 .. REQUESTS) { known[i] = false }
	for (n : 0 .. REQUESTS) {
		if
		:: line[n] != missing -> req = n; remember(req); n = req
		:: else
		fi
	}
	req = 0;
#if PROMISED == 13 || PROMISED == 15
	began = now;
#endif
}

/* The mark is gone for good before anything is accepted. */
inline removeMark() {
#ifndef NO_MARK_REMOVAL
	mark = false;
#ifndef NO_MARK_SYNC
	markOnDisk = false;
#endif
#endif
	skip
}

/* "New boot id without a clean mark: refuse stamps up to max(start, newest stamp
 * in the journal)." The bar is a journal line of its own, as the next start of
 * this boot calls the journal complete. */
inline bar() {
	d_step {
		if
		:: !complete ->
#if !defined(NO_BARRIER) && !defined(COUNTER)
#ifndef NO_BARRIER_START
			barred = now;
#endif
#ifndef NO_BARRIER_NEWEST
			for (i : 0 .. REQUESTS) {
				if
				:: line[i] != missing && stamp[i] > barred -> barred = stamp[i]
				:: else
				fi
			}
#endif
			PROMISE(6, barred <= now + WINDOW);
#endif
			skip
		:: else
		fi;
	}
	d_step {
#ifndef NO_BARRIER_KEPT
		if
		:: !complete -> barrier = barred; syncJournal()
		:: else
		fi;
#endif
		complete = false
	}
}

inline start() {
	d_step { readState() };
#ifdef NO_BOOT_ID_LAST
	sameBoot = true;
#endif
	removeMark();
	bar();
	sameBoot = true
}

inline stop() {
#ifndef NO_STOP_SYNC
	d_step { syncJournal() };
#endif
	mark = true;
	markOnDisk = true;
#if PROMISED == 15
	wasStopped = true;
#endif
	skip
}

/* ==== Crashes ==== */

/* Everything cached is kept or lost by itself. Boot ids never come twice. */
inline losePower() {
	for (req : 0 .. REQUESTS) {
		if
		:: line[req] == cached -> line[req] = synced
#ifdef NEWEST_ON_DISK
		:: line[req] == cached && line[REQUESTS - 1] == synced -> line[req] = missing
#else
		:: line[req] == cached -> line[req] = missing
#endif
		:: else
		fi
	}
	req = 0;
	if
	:: mark = markOnDisk
	:: markOnDisk = mark
	fi;
	sameBoot = false
}

inline crash() {
	d_step {
		drop();
		barred = 0; complete = false;
		for (i : 0 .. REQUESTS) { known[i] = false };
		skip
	};
	if
	:: power == blackout -> losePower()
	:: else
	fi;
#if PROMISED == 13
	wasKilled = (power == killed);
#endif
#if PROMISED == 15
	wasStopped = wasStopped && mark && power == blackout;
#endif
	power = up
}

/* ==== Who acts ==== */

proctype Server() {
boot:
	{
		start();
		do
		:: atomic {
			receive();
			d_step { judge() };
			if
			:: fresh
			:: else -> drop(); goto next
			fi
		   };
		   accept();
next:		   skip
		:: stop(); break
		od;
		atomic { power == up; goto boot }
	} unless {
		atomic { power != up; crash(); goto boot }
	}
}

proctype Nature() {
end:	do
	:: power == up -> power = killed
	:: power == up -> power = blackout
	:: now < END -> now++
#ifdef CLOCK_BACK
	:: now > 1 -> now--
#endif
	od
}

/* Requests are alike but for what they carry: sorted stamps lose nothing. */
init {
	atomic {
		for (req : 0 .. REQUESTS - 1) {
#ifdef COUNTER
			stamp[req] = req + 1;
#else
			stamp[req] = (req == 0 -> 1 : stamp[req - 1]);
			do
			:: stamp[req] < LATEST -> stamp[req]++
			:: break
			od;
#endif
#ifdef STATING
			stated[req] = (STATING >> req) & 1;
#else
			if
			:: stated[req] = true
			:: stated[req] = false
			fi;
#endif
			do
			:: key[req] < KEYS - 1 -> key[req]++
			:: break
			od
		};
		req = 0;
		run Server();
		run Nature()
	}
}
