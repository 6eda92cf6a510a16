package pool

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestVerbOf(t *testing.T) {
	for query, want := range map[string]verb{
		"":         verbOther,
		"select 1": verbOther,
		"BEGIN":    verbBegin,
		" -- x\n/* y /* z */ */ start transaction": verbBegin,
		"commit; select 1":                         verbCommit,
		"END":                                      verbCommit,
		"commit prepared 'x'":                      verbOther,
		"Rollback":                                 verbRollback,
		"abort work":                               verbRollback,
		"rollback to savepoint a":                  verbOther,
		"rollback work to a":                       verbOther,
		"set local x = 1":                          verbSetLocal,
		"set local x = 1; set y = 2":               verbOther,
		"set transaction read only;":               verbSetLocal,
		"SET SESSION TimeZone = 'UTC'":             verbSetLocal,
		"set time zone 'UTC'":                      verbSetLocal,
		"set session authorization bob":            verbOther,
		"set work_mem = 1":                         verbOther,
		"set app.timezone = 1":                     verbOther,
		"deallocate x":                             verbDeallocate,
		"/* never ends":                            verbOther,
		"--":                                       verbOther,
	} {
		if got := verbOf([]byte(query)); got != want {
			t.Errorf("%q: %d, want %d", query, got, want)
		}
	}
}

func TestDeallocated(t *testing.T) {
	for query, want := range map[string]string{
		"deallocate S1 ;":            "s1",
		"DEALLOCATE PREPARE a_b":     "a_b",
		`deallocate "Mixed "" case"`: `Mixed " case`,
		"deallocate prepare":         "prepare",
		"deallocate all":             "",
		"deallocate a; select 1":     "",
		"deallocate":                 "",
	} {
		if got, ok := deallocated([]byte(query)); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q %v, want %q", query, got, ok, want)
		}
	}
}

func TestAdjust(t *testing.T) {
	has := trackedOf([]Param{{"server_version", "17"}, {"TimeZone", "UTC"}, {"application_name", ""}, {"DateStyle", "ISO, MDY"}})
	want := has.with("application_name", `it's \`).with("TimeZone", "GMT").with("unknown", "1").with("server_version", "18")
	const sql = `SELECT pg_catalog.set_config( E'TimeZone', E'GMT',false),pg_catalog.set_config( E'application_name', E'it''s \\',false)`
	if got := string(has.adjust(nil, want)); got != sql {
		t.Errorf("got  %s\nwant %s", got, sql)
	}
	if got := has.adjust(nil, has.with("TimeZone", "UTC")); len(got) > 0 {
		t.Errorf("for nothing: %s", got)
	}
}

// bed is a loop that is driven by hand, with a client and a session whose other ends are sockets of the test.
type bed struct {
	l   *loop
	c   *client
	s   *server
	far [2]int
}

// nowhere has no compute.
type nowhere struct{}

func (nowhere) Connect(context.Context, string, map[string]string, bool) (*Session, error) {
	return nil, context.Canceled
}

func newBed(t *testing.T) *bed {
	pools := New(Options{Backend: nowhere{}, Log: slog.New(slog.DiscardHandler)})
	pools.base, pools.cancel = context.WithCancel(t.Context())
	l, err := newLoop(pools)
	if err != nil {
		t.Fatal(err)
	}
	l.now = time.Now()
	b := &bed{l: l, c: &client{closed: func() {}, vars: &vars{}}}
	p := l.endpoint("ep").pool(map[string]string{"user": "u", "database": "d"})
	p.e.limits = Limits{MaxConnections: 1} // no other session is opened
	b.c.pool, b.s = p, &server{pool: p, vars: b.c.vars, status: 'I', since: l.now}
	for i, o := range []struct {
		s *sock
		h handler
	}{{&b.c.sock, b.c}, {&b.s.sock, b.s}} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		b.far[i] = fds[1]
		if err := l.add(o.s, fds[0], o.h); err != nil {
			t.Fatal(err)
		}
	}
	p.clients, p.e.clients, p.live, p.e.servers = 1, 1, 1, 1
	p.e.groups[p.group] = 1
	p.idle = append(p.idle, b.s)
	t.Cleanup(func() {
		pools.cancel()
		l.close()
		for _, fd := range b.far {
			_ = unix.Close(fd)
		}
		pools.work.Wait()
	})
	return b
}

// FuzzMessages gives arbitrary bytes to the two sides of a connection: what the client sent, and what the server did.
func FuzzMessages(f *testing.F) {
	q := []byte("Q\x00\x00\x00\x0dselect 1\x00")
	ready := []byte("C\x00\x00\x00\x0dSELECT 1\x00Z\x00\x00\x00\x05I")
	f.Add(q, ready, uint8(3))
	f.Add([]byte("P\x00\x00\x00\x0fa\x00select\x00\x00\x00B\x00\x00\x00\x0d\x00a\x00\x00\x00\x00\x00\x00\x00E\x00\x00\x00\x09\x00\x00\x00\x00\x00S\x00\x00\x00\x04"),
		[]byte("1\x00\x00\x00\x042\x00\x00\x00\x04C\x00\x00\x00\x09SET\x00\x00Z\x00\x00\x00\x05T"), uint8(200))
	f.Add([]byte("C\x00\x00\x00\x07Sa\x00S\x00\x00\x00\x04H\x00\x00\x00\x04c\x00\x00\x00\x04"), []byte("E\x00\x00\x00\x10SFATAL\x00C57P01\x00\x00"), uint8(1))
	f.Fuzz(func(t *testing.T, fromClient, fromServer []byte, step uint8) {
		b := newBed(t)
		hung := time.AfterFunc(5*time.Second, func() { panic("hung") })
		defer hung.Stop()
		n := int(step) + 1
		for len(fromClient) > 0 || len(fromServer) > 0 {
			if k := min(n, len(fromClient)); k > 0 && b.c.fd >= 0 {
				if !b.c.paused() {
					b.c.feed(fromClient[:k])
				}
				if len(b.c.in) > maxParse+maxWhole {
					t.Fatalf("%d bytes are kept", len(b.c.in))
				}
			}
			fromClient = fromClient[min(n, len(fromClient)):]
			if k := min(n, len(fromServer)); k > 0 && b.s.fd >= 0 {
				chunk := fromServer[:k]
				if len(b.s.held) > 0 {
					b.s.held = append(b.s.held, chunk...)
					chunk = b.s.held
				}
				b.s.take(chunk)
			}
			fromServer = fromServer[min(n, len(fromServer)):]
			b.l.handOut()
		}
	})
}
