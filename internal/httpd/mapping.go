package httpd

import (
	"errors"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// What this server has no better answer for.
const (
	creationSource = "console"     // what clients know for anything made by hand or through the API
	plan           = "self_hosted" // of users and organizations
	noLimit        = 1_000_000     // projects and branches: nothing counts them
	sizeLimitBytes = 16 << 40      // of one branch, unless its project has a quota
)

// stamp is a time as the API shows it: UTC, whole seconds.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// optStamp leaves an unknown time out.
func optStamp(t *time.Time) *time.Time {
	if t == nil || t.IsZero() {
		return nil
	}
	s := stamp(*t)
	return &s
}

// optExact keeps the microseconds of a time that a client may send back as a point in history.
func optExact(t *time.Time) *time.Time {
	if t == nil || t.IsZero() {
		return nil
	}
	s := t.UTC().Truncate(time.Microsecond)
	return &s
}

// opt leaves the zero value out.
func opt[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// or returns what p points to, or the default.
func or[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// each maps a list; the result is never nil, so that it is [] in JSON.
func each[A, B any](list []A, f func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, v := range list {
		out = append(out, f(v))
	}
	return out
}

// platform is the part of a region id before its first hyphen: aws for aws-us-east-1, local for local.
func platform(region string) string {
	p, _, _ := strings.Cut(region, "-")
	return p
}

// gone tells that a DELETE found nothing of its own kind to delete, which the API answers with 204. What the thing
// belongs to must exist: a missing project is a 404.
func gone(err error, code string) bool {
	e, ok := errors.AsType[*core.Error](err)
	return ok && e.Kind == core.KindNotFound && e.Code == code
}
