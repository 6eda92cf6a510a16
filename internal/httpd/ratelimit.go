package httpd

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/boughdb/bough/internal/core"
)

// Quota is how many calls are possible at once, and how long it takes until that many are possible again.
type Quota struct {
	Calls int // 0 means no limit
	Per   time.Duration
}

func (q Quota) limiter() *rate.Limiter {
	if q.Calls == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(float64(q.Calls)/q.Per.Seconds()), q.Calls)
}

// RateLimit bounds the calls of one account: a user with all personal keys, or an organization with all of its own.
type RateLimit struct {
	Account Quota
	Route   Quota // of each operation
}

// ParseRateLimit reads "700/m,40/s" (the first for the account, the second for each route; either may be left empty) or "off".
func ParseRateLimit(s string) (RateLimit, error) {
	var out RateLimit
	wrong := core.Invalidf("%s is not a rate limit; examples: 700/m,40/s (700 a minute for an account, 40 a second for each route), 700/m, off", clip(s))
	if s == "off" {
		return out, nil
	}
	account, route, _ := strings.Cut(s, ",")
	if account == "" && route == "" {
		return out, wrong
	}
	for i, text := range []string{account, route} {
		if text == "" {
			continue
		}
		number, unit, _ := strings.Cut(strings.TrimSpace(text), "/")
		per, known := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
		n, err := strconv.ParseUint(number, 10, 20)
		if err != nil || n == 0 || !known {
			return RateLimit{}, wrong
		}
		*[]*Quota{&out.Account, &out.Route}[i] = Quota{int(n), per}
	}
	return out, nil
}

// policy is the RateLimit-Policy of answers (IETF draft "RateLimit header fields for HTTP", version 7).
func (l RateLimit) policy() string {
	var parts []string
	for _, q := range []Quota{l.Account, l.Route} {
		if q.Calls > 0 {
			parts = append(parts, fmt.Sprintf("%d;w=%d", q.Calls, int(q.Per.Seconds())))
		}
	}
	return strings.Join(parts, ", ")
}

// sweepEvery is how often accounts that have not called for a while are forgotten.
const sweepEvery = time.Minute

// throttle counts calls. What it remembers is bounded by the accounts that called lately, times the operations that there are.
type throttle struct {
	limit RateLimit

	mu       sync.Mutex
	accounts map[string]*buckets
	swept    time.Time
}

func newThrottle(l RateLimit) *throttle { return &throttle{limit: l, accounts: map[string]*buckets{}} }

// buckets are the limiters of one account.
type buckets struct {
	all    *rate.Limiter
	routes map[string]*rate.Limiter
	used   time.Time
}

// take counts a call. It returns how long to wait when it is one too many (it is not counted then), 0 otherwise; which
// quota the answer tells about, and how much of it is left.
func (t *throttle) take(account, route string, now time.Time) (wait time.Duration, q Quota, left *rate.Limiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.swept) > sweepEvery {
		t.swept = now
		for id, b := range t.accounts {
			// Full again: the same as a new one.
			if now.Sub(b.used) > max(t.limit.Account.Per, t.limit.Route.Per) {
				delete(t.accounts, id)
			}
		}
	}
	b := t.accounts[account]
	if b == nil {
		b = &buckets{all: t.limit.Account.limiter(), routes: map[string]*rate.Limiter{}}
		t.accounts[account] = b
	}
	b.used = now
	one := b.routes[route]
	if one == nil {
		one = t.limit.Route.limiter()
		b.routes[route] = one
	}
	first, second := b.all.ReserveN(now, 1), one.ReserveN(now, 1)
	inAll, inOne := first.DelayFrom(now), second.DelayFrom(now)
	if inAll > 0 || inOne > 0 {
		second.CancelAt(now)
		first.CancelAt(now)
	}
	if t.limit.Account.Calls == 0 || inOne > inAll {
		return inOne, t.limit.Route, one
	}
	return inAll, t.limit.Account, b.all
}

// limit answers 429 to calls beyond the limits, before their body is read.
func (d *door) limit(next http.Handler) http.Handler {
	l := d.opt.RateLimit
	if l == (RateLimit{}) {
		return next
	}
	t := newThrottle(l)
	policy := l.policy()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, now := CallerFrom(r.Context()), d.opt.Now()
		wait, q, bucket := t.take(cmp.Or(c.OrgID, c.UserID), Operation(r.Context()), now)
		tokens := max(bucket.TokensAt(now), 0)
		reset := math.Ceil((float64(q.Calls) - tokens) / float64(bucket.Limit())) // seconds until the whole quota is there again
		h := w.Header()
		h.Set("RateLimit-Policy", policy)
		for name, v := range map[string]int{"Limit": q.Calls, "Remaining": int(tokens), "Reset": int(reset)} {
			h.Set("RateLimit-"+name, strconv.Itoa(v))
			h.Set("X-RateLimit-"+name, strconv.Itoa(v))
		}
		if wait > 0 {
			of := "this account"
			if q == l.Route {
				of = Operation(r.Context())
			}
			d.fail(w, r, &core.Error{Kind: core.KindRateLimited, RetryAfter: wait,
				Message: fmt.Sprintf("too many calls: %s is limited to %d in %v; wait, then try again", of, q.Calls, q.Per)})
			return
		}
		next.ServeHTTP(w, r)
	})
}
