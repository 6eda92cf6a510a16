package control

import (
	"context"
	"testing"
	"time"
)

func TestSharedLocks(t *testing.T) {
	var locks keyedLocks
	acquire := func(lock func(context.Context, string) (func(), error)) func() {
		t.Helper()
		unlock, err := lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		return unlock
	}
	first, second := acquire(locks.share), acquire(locks.share) // side by side
	alone := make(chan func())
	go func() {
		unlock, err := locks.lock(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		alone <- unlock
	}()
	waiting := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			locks.mu.Lock()
			have := len(locks.held["a"].waiting)
			locks.mu.Unlock()
			if have == n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d wait, want %d", have, n)
			}
		}
	}
	waiting(1)
	third := make(chan func())
	go func() { // behind the one who wants it alone
		unlock, err := locks.share(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		third <- unlock
	}()
	waiting(2)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := locks.share(gone, "a"); err == nil {
		t.Error("a sharer overtook")
	}
	first()
	second()
	unlock := <-alone
	waiting(1)
	unlock()
	(<-third)()
	if len(locks.held) != 0 {
		t.Error("a lock stays")
	}
}
