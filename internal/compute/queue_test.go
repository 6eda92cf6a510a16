package compute

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// taker enters a queue and reports its name when its turn has come.
type taker struct {
	ticket *ticket
	leave  func()
	err    error
	done   chan struct{}
}

// enter starts a taker and returns when it has its place.
func enter(ctx context.Context, q *startQueue, background bool) *taker {
	k := &taker{done: make(chan struct{})}
	placed := make(chan struct{})
	go func() {
		defer close(k.done)
		k.leave, k.err = q.enter(ctx, background, func(t *ticket) { k.ticket = t; close(placed) })
	}()
	<-placed
	return k
}

func (k *taker) must(t *testing.T) {
	t.Helper()
	select {
	case <-k.done:
		if k.err != nil {
			t.Fatal(k.err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("its turn never came")
	}
}

func (k *taker) waits() bool {
	select {
	case <-k.ticket.ready:
		return false
	default:
		return true
	}
}

func TestStartQueueOrder(t *testing.T) {
	q := newStartQueue(1)
	first := enter(t.Context(), q, false)
	first.must(t)
	back1 := enter(t.Context(), q, true)
	back2 := enter(t.Context(), q, true)
	client1 := enter(t.Context(), q, false)
	client2 := enter(t.Context(), q, false)
	if q.length() != 4 {
		t.Fatalf("%d wait", q.length())
	}
	q.hurry(back2.ticket) // a client came for it: behind the other clients, before the background
	q.hurry(first.ticket) // runs already
	order := []*taker{first, client1, client2, back2, back1}
	for i, k := range order {
		k.must(t)
		for _, later := range order[i+1:] {
			if !later.waits() {
				t.Fatalf("a later one has its turn beside number %d", i)
			}
		}
		k.leave()
		k.leave() // counts once
	}
	if q.free != 1 || q.length() != 0 {
		t.Errorf("%d slots and %d waiting are left", q.free, q.length())
	}
}

func TestStartQueueAgesTheBackground(t *testing.T) {
	q := newStartQueue(1)
	now := time.Now()
	back := &ticket{due: now.Add(-time.Second)} // came long ago
	client := &ticket{due: now}
	q.insert(client)
	q.insert(back)
	if !slices.Equal(q.waiting, []*ticket{back, client}) {
		t.Error("a background start that has waited long enough does not go first")
	}
}

func TestStartQueueGivesUp(t *testing.T) {
	q := newStartQueue(1)
	first := enter(t.Context(), q, false)
	first.must(t)
	gone, cancel := context.WithCancel(t.Context())
	second := enter(gone, q, false)
	third := enter(t.Context(), q, false)
	cancel()
	<-second.done
	if !errors.Is(second.err, context.Canceled) || q.length() != 1 {
		t.Fatalf("%v, %d wait", second.err, q.length())
	}
	first.leave()
	third.must(t)
	third.leave()
	// Its turn and its end come together: whichever it sees, no slot is lost.
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		holder := enter(t.Context(), q, false)
		holder.must(t)
		k := enter(ctx, q, false)
		go cancel()
		holder.leave()
		<-k.done
		if k.err == nil {
			k.leave()
		}
	}
	if q.free != 1 || q.length() != 0 {
		t.Errorf("%d slots and %d waiting are left", q.free, q.length())
	}
}

func TestStartQueueLetsOthersPassASlowStart(t *testing.T) {
	q := newStartQueue(1)
	slow := enter(t.Context(), q, false)
	slow.must(t)
	next := enter(t.Context(), q, false)
	next.must(t) // although slow has not left
	next.leave()
	slow.leave()
	if q.free != 1 {
		t.Errorf("%d slots are left", q.free)
	}
}
