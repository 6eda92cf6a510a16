package control

import (
	"context"
	"slices"
	"sync"
)

// keyedLocks is one lock for each key, freed when nobody holds or awaits it. Several may share a lock, or one has it alone;
// who came first is served first, so that a stream of sharers keeps nobody out.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]*keyedLock
}

type keyedLock struct {
	sharers int  // who hold it together
	alone   bool // one has it alone
	waiting []*lockWaiter
}

type lockWaiter struct {
	share bool
	turn  chan struct{} // closed when the lock is the waiter's
}

// lock waits for a key's lock; unlock must be called once, unless there is an error.
func (k *keyedLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	return k.acquire(ctx, key, false)
}

// share is lock for somebody who leaves others in who do the same.
func (k *keyedLocks) share(ctx context.Context, key string) (unlock func(), err error) {
	return k.acquire(ctx, key, true)
}

// tryLock is lock for who has something else to do when somebody holds or awaits it.
func (k *keyedLocks) tryLock(key string) (unlock func(), ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held[key] != nil {
		return nil, false
	}
	if k.held == nil {
		k.held = map[string]*keyedLock{}
	}
	l := &keyedLock{alone: true}
	k.held[key] = l
	return func() { k.release(key, l, false) }, true
}

func (k *keyedLocks) acquire(ctx context.Context, key string, share bool) (unlock func(), err error) {
	w := &lockWaiter{share: share, turn: make(chan struct{})}
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*keyedLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyedLock{}
		k.held[key] = l
	}
	l.waiting = append(l.waiting, w)
	k.admit(key, l)
	k.mu.Unlock()
	select {
	case <-w.turn:
		return func() { k.release(key, l, share) }, nil
	case <-ctx.Done():
	}
	k.mu.Lock()
	if i := slices.Index(l.waiting, w); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		k.admit(key, l)
		k.mu.Unlock()
	} else { // its turn came at the same moment
		k.mu.Unlock()
		k.release(key, l, share)
	}
	return nil, ctx.Err()
}

func (k *keyedLocks) release(key string, l *keyedLock, share bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if share {
		l.sharers--
	} else {
		l.alone = false
	}
	k.admit(key, l)
}

// admit gives the lock to those at the head of the queue who can have it. k.mu is held.
func (k *keyedLocks) admit(key string, l *keyedLock) {
	for len(l.waiting) > 0 && !l.alone && (l.sharers == 0 || l.waiting[0].share) {
		w := l.waiting[0]
		l.waiting = l.waiting[1:]
		if w.share {
			l.sharers++
		} else {
			l.alone = true
		}
		close(w.turn)
	}
	if len(l.waiting) == 0 && !l.alone && l.sharers == 0 {
		delete(k.held, key)
	}
}
