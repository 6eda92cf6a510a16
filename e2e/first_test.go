package e2e

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestKillFirstStart kills the server while it makes everything for the first time: the pool, the control database, the
// template. The next start makes do with what it finds.
func TestKillFirstStart(t *testing.T) {
	random := rand.New(rand.NewPCG(*killSeed, 1))
	for range *killMoments {
		s := prepare(t, backend())
		if err := s.launch(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(random.Int64N(int64(2500 * time.Millisecond)))
		timer := time.NewTimer(after) // the moment is the point, not a wait for something
		<-timer.C
		s.Kill9()
		s.Start()
		p := s.checkable(t)
		if n := value[int](t, s.connect(t, p.URI), "select 1"); n != 1 {
			t.Error(n)
		}
		p.suspend(t, p.Endpoint)
		s.checksums(t, p.Branch)
		s.settled(t)
		if t.Failed() {
			t.Fatalf("the server was killed %v after its first start", after)
		}
		s.Down()
	}
}
