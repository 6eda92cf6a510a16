package ops

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// News is what one server tells another, about a branch, an operation or an endpoint. Everything that it brings about would
// also happen without it, later: messages can be lost.
type News string

// The news.
const (
	newsWork  News = "work"  // a branch of a server's project has something to do; see work
	newsEnded News = "ended" // of an operation that somebody may wait for
	// NewsChanged says that an endpoint's limits or idle timeout were changed, and its compute may be yours.
	NewsChanged News = "changed"
	// NewsAwaited says that a client waits for an endpoint's compute.
	NewsAwaited News = "awaited"
)

// lonelyWait is how often somebody who waits for an operation looks whether it has ended although nothing was heard.
const lonelyWait = time.Second

func (q *Queue) patience() time.Duration {
	if q.fleet.Company() {
		return lonelyWait
	}
	return sweepEvery
}

func (q *Queue) message(news News, id string) string {
	return fmt.Sprintf("%d %s %s", q.fleet.Self(), news, id)
}

// Tell says something to the other servers, if there are any.
func (q *Queue) Tell(ctx context.Context, news News, id string) {
	if !q.fleet.Company() {
		return
	}
	if err := q.store.Tell(ctx, q.message(news, id)); err != nil && ctx.Err() == nil {
		q.log.Warn("cannot tell the other servers; they find out by themselves", "news", news, "id", id, "error", err)
	}
}

// work is what newsWork says: whose work, and on which branch.
func work(server int64, branchID string) string { return fmt.Sprintf("%d@%s", server, branchID) }

// hear acts on a message.
func (q *Queue) hear(text string) {
	sender, rest, _ := strings.Cut(text, " ")
	news, id, ok := strings.Cut(rest, " ")
	if !ok || sender == strconv.FormatInt(q.fleet.Self(), 10) {
		return
	}
	switch News(news) {
	case newsWork:
		// Only one is meant, or those who are not would pass it on for ever.
		if branch, mine := strings.CutPrefix(id, work(q.fleet.Self(), "")); mine {
			q.kick(branch)
		}
	case newsEnded:
		q.wake(id)
	default:
		q.work.Go(func() { q.runner.Told(q.ctx, News(news), id) })
	}
}

func (q *Queue) deaf(err error) {
	q.log.Warn("cannot hear the other servers for a moment", "error", err)
}

// Leave gives up the projects of this server in which nothing runs and nothing is to be done, so that whoever is asked next
// takes them.
func (q *Queue) Leave(ctx context.Context) (projects []string, err error) {
	q.claims.Lock()
	defer q.claims.Unlock()
	return q.store.LeaveProjects(ctx, q.fleet.Self())
}
