package control

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// seenPosition is what DIR/control-position holds: how far the control database's history was when this data directory saw
// it last. A control database that is further back was restored from a backup, and does not know the newest branches.
type seenPosition struct {
	store.Position
	Doubt string `json:"doubt,omitempty"` // stays until a person removes the file: the history goes on from there
}

// positionEvery is how often the position is written down.
const positionEvery = time.Minute

func (l *look) checkPosition() []Finding {
	path, now := filepath.Join(l.DataDir, "control-position"), l.inv.Position
	if now.System == "" {
		return nil
	}
	var seen seenPosition
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &seen)
	}
	if err != nil && !os.IsNotExist(err) {
		seen.Doubt = "the file " + path + " cannot be read"
	} else if err == nil && seen.Doubt == "" {
		switch {
		case seen.System != now.System:
			seen.Doubt = "the control database is another PostgreSQL cluster than before"
		case now.LSN < seen.LSN:
			seen.Doubt = fmt.Sprintf("the control database is at %s of its history and was at %s before, as after a restore from a backup", now.LSN, seen.LSN)
		}
		if seen.Doubt != "" {
			l.writePosition(path, seen)
		}
	}
	if seen.Doubt == "" {
		if l.s != nil && l.at.Sub(l.s.drift.positioned) > positionEvery {
			l.writePosition(path, seenPosition{Position: now})
			l.s.drift.positioned = l.at
		}
		return nil
	}
	l.doubt = seen.Doubt
	return []Finding{{Kind: DriftIdentity, Subject: path, Problem: "The control database may be old or wrong: " + seen.Doubt + ".",
		Advice: "check that it knows every branch; until then the server removes nothing that it does not know. When it is right, remove the file " + path}}
}

// writePosition replaces the file; l.s is nil when nothing may be changed.
func (l *look) writePosition(path string, p seenPosition) {
	if l.s == nil {
		return
	}
	raw, err := json.Marshal(p)
	if err == nil {
		err = replaceFile(path, append(raw, '\n'))
	}
	if err != nil {
		l.Log.Warn("cannot write down where the control database is", "error", core.Wrap(err, "control.position", ""))
	}
}

// replaceFile writes a file so that a crash leaves the old or the new one. What a crash may take back is only that it is new.
func replaceFile(path string, content []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
