package compute

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A start is mostly work of the processor: a hundred at once would all be late, and the clients that are authenticating
// with them. So they queue.
const (
	// startsPerCore starts run at once on each core; measured, see ARCHITECTURE.md.
	startsPerCore = 2
	// slotLimit is how long a start keeps others waiting. One that takes longer replays WAL, or hangs: it goes on beside
	// the queue.
	slotLimit = 2 * time.Second
	// backgroundDelay is how much longer than a client somebody waits whom no client waits for.
	backgroundDelay = 10 * time.Second
)

// startQueue lets a limited number of starts run at once: in the order in which they came, except that clients overtake
// background starts that came less than backgroundDelay before them.
type startQueue struct {
	mu      sync.Mutex
	free    int
	waiting []*ticket // by due
}

// ticket is a start's place in the queue.
type ticket struct {
	due   time.Time
	ready chan struct{} // closed when it may start
}

func newStartQueue(limit int) *startQueue {
	if limit <= 0 {
		limit = startsPerCore * runtime.NumCPU()
	}
	return &startQueue{free: limit}
}

// enter waits for a slot. leave gives it back, is safe twice, and is called by itself after slotLimit.
func (q *startQueue) enter(ctx context.Context, background bool, register func(*ticket)) (leave func(), err error) {
	t := &ticket{due: time.Now(), ready: make(chan struct{})}
	if background {
		t.due = t.due.Add(backgroundDelay)
	}
	q.mu.Lock()
	if q.free > 0 && len(q.waiting) == 0 {
		q.free--
		close(t.ready)
	} else {
		q.insert(t)
	}
	q.mu.Unlock()
	register(t)
	select {
	case <-t.ready:
	case <-ctx.Done():
		q.mu.Lock()
		i := slices.Index(q.waiting, t)
		if i >= 0 {
			q.waiting = slices.Delete(q.waiting, i, i+1)
		}
		q.mu.Unlock()
		if i < 0 { // its turn came at the same moment
			q.next()
		}
		return nil, ctx.Err()
	}
	once := sync.OnceFunc(q.next)
	timer := time.AfterFunc(slotLimit, once)
	return func() { timer.Stop(); once() }, nil
}

// insert keeps the queue in order; equal ones stay in the order in which they came. q.mu is held.
func (q *startQueue) insert(t *ticket) {
	i, _ := slices.BinarySearchFunc(q.waiting, t, func(a, b *ticket) int {
		if a.due.After(b.due) {
			return 1
		}
		return -1
	})
	q.waiting = slices.Insert(q.waiting, i, t)
}

// next gives a slot to the first who waits.
func (q *startQueue) next() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.free++
		return
	}
	close(q.waiting[0].ready)
	q.waiting = slices.Delete(q.waiting, 0, 1)
}

// hurry moves a background start to where a client that comes now would be.
func (q *startQueue) hurry(t *ticket) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, t)
	if now := time.Now(); i >= 0 && t.due.After(now) {
		q.waiting = slices.Delete(q.waiting, i, i+1)
		t.due = now
		q.insert(t)
	}
}

// length is how many starts wait.
func (q *startQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// Hurry tells that a client waits for the endpoint's compute: a start of it that is queued in the background moves up.
func (m *Manager) Hurry(endpointID string) {
	m.mu.Lock()
	var t *ticket
	if u := m.units[endpointID]; u != nil && u.phase == starting {
		t = u.ticket
	}
	m.mu.Unlock()
	if t != nil {
		m.queue.hurry(t)
	}
}

// Queued is how many starts wait for their turn.
func (m *Manager) Queued() int { return m.queue.length() }
