package pool

// What a session owes for each message that it was sent, in order.
type expectKind uint8

const (
	exParse     expectKind = iota // ParseComplete
	exParseOwn                    // the same, of ours: the client does not see it
	exParseFake                   // nothing: the session has the statement, and the client gets a ParseComplete
	exBind                        // BindComplete
	exDescribe                    // RowDescription or NoData
	exExecute                     // CommandComplete, EmptyQueryResponse or PortalSuspended
	exClose                       // CloseComplete
	exCloseOwn                    // the same, of ours
	exCloseFake                   // nothing, and the client gets a CloseComplete
	exRefuse                      // an error of ours: the name of a prepared statement is in use
	exCopyEnd                     // nothing: the client has ended a COPY
	exSync                        // ReadyForQuery
	exQuery                       // a result, and ReadyForQuery
	exQueryOwn                    // the same, of ours
)

type expect struct {
	kind expectKind
	verb verb   // of exQuery, exExecute
	st   *stmt  // of exParse*, exBind, exDescribe: the statement; of exClose*: the one that was closed
	prev *stmt  // of exParse, exParseFake: what had the name before
	name string // the client's name of st, when this message gave or took it
	own  func(s *server, err []byte)
}

// expects is a queue.
type expects struct {
	ring  []expect
	first int
	n     int
}

func (q *expects) push(e expect) {
	if q.n == len(q.ring) {
		ring := make([]expect, max(8, 2*len(q.ring)))
		for i := range q.n {
			ring[i] = *q.at(i)
		}
		q.ring, q.first = ring, 0
	}
	q.ring[(q.first+q.n)&(len(q.ring)-1)] = e
	q.n++
}

func (q *expects) at(i int) *expect { return &q.ring[(q.first+i)&(len(q.ring)-1)] }

// head is the kind of the first one, exSync when there is none.
func (q *expects) head() expectKind {
	if q.n == 0 {
		return exSync
	}
	return q.ring[q.first].kind
}

func (q *expects) pop() expect {
	e := q.ring[q.first]
	q.ring[q.first] = expect{}
	q.first = (q.first + 1) & (len(q.ring) - 1)
	q.n--
	return e
}

// toSync is the number of those before the next exSync, all when there is none.
func (q *expects) toSync() (n int, found bool) {
	for n < q.n {
		if q.at(n).kind == exSync {
			return n, true
		}
		n++
	}
	return n, false
}

// dropSyncs removes the exSyncs behind the head and before the end of a COPY: a server ignores Sync while it takes COPY data.
// It tells whether the end of the COPY is among what was sent.
func (q *expects) dropSyncs() (ended bool) {
	keep := 1
	for i := 1; i < q.n; i++ {
		e := *q.at(i)
		if e.kind == exCopyEnd {
			ended = true
		}
		if e.kind == exSync && !ended {
			continue
		}
		*q.at(keep) = e
		keep++
	}
	for i := keep; i < q.n; i++ {
		*q.at(i) = expect{}
	}
	q.n = keep
	return ended
}
