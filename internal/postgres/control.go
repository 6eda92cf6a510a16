package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// ClusterState is the state that pg_control records.
type ClusterState uint32

// The states, numbered as in PostgreSQL's src/include/catalog/pg_control.h (DBState).
const (
	StateStartup            ClusterState = 0
	StateShutDown           ClusterState = 1 // clean: nothing to replay
	StateShutDownInRecovery ClusterState = 2
	StateShuttingDown       ClusterState = 3
	StateCrashRecovery      ClusterState = 4
	StateArchiveRecovery    ClusterState = 5
	StateProduction         ClusterState = 6 // running, or crashed while it ran
)

// String is the wording of pg_controldata.
func (s ClusterState) String() string {
	names := [...]string{"starting up", "shut down", "shut down in recovery", "shutting down", "in crash recovery",
		"in archive recovery", "in production"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("unrecognized status code %d", uint32(s))
}

// ControlData is what global/pg_control says.
type ControlData struct {
	SystemID            uint64
	ControlVersion      uint32 // PG_CONTROL_VERSION: 1300 (majors 13 to 16), 1700, 1800
	CatalogVersion      uint32
	State               ClusterState
	ModifiedAt          time.Time
	Checkpoint          core.LSN // the latest checkpoint record
	Redo                core.LSN // where its replay starts
	Timeline            uint32   // of the latest checkpoint
	PrevTimeline        uint32
	CheckpointTime      time.Time
	MinRecoveryPoint    core.LSN
	MinRecoveryTimeline uint32
	BackupStart         core.LSN
	BackupEnd           core.LSN
	BackupEndRequired   bool
	Limits              StandbyLimits // of the server that wrote the WAL
	WALSegmentSize      uint64        // bytes
	BlockSize           uint32
	ChecksumVersion     uint32 // 0: no data checksums
}

// Offsets in ControlFileData on machines with 8-byte alignment, from src/include/catalog/pg_control.h. Majors 14 to 18 differ
// only after data_checksum_version: 18 adds default_char_signedness before the nonce, so its CRC sits 4 bytes later. (17
// put wal_level into what was padding of the checkpoint.)
const (
	offSystemID          = 0
	offControlVersion    = 8
	offCatalogVersion    = 12
	offState             = 16
	offTime              = 24
	offCheckpoint        = 32
	offRedo              = 40
	offTimeline          = 48
	offPrevTimeline      = 52
	offCheckpointTime    = 104
	offMinRecovery       = 136
	offMinRecoveryTL     = 144
	offBackupStart       = 152
	offBackupEnd         = 160
	offBackupEndRequired = 168
	offMaxConnections    = 180
	offMaxWorkers        = 184
	offMaxSenders        = 188
	offMaxPrepared       = 192
	offMaxLocks          = 196
	offBlockSize         = 216
	offSegmentSize       = 228
	offChecksumVersion   = 252
	offCRC1300           = 288
	offCRC1800           = 292
)

var errControlCRC = errors.New("pg_control: CRC mismatch")

// ReadControl reads a cluster's control file, running or not. A running server rewrites the file in place, so a CRC mismatch
// is read again for a moment before it counts as damage.
func ReadControl(dataDir string) (ControlData, error) {
	path := filepath.Join(dataDir, "global", "pg_control")
	var err error
	for attempt := range 20 {
		if attempt > 0 {
			time.Sleep(time.Millisecond)
		}
		var raw []byte
		if raw, err = os.ReadFile(path); err != nil {
			break
		}
		var c ControlData
		if c, err = parseControl(raw); err == nil {
			return c, nil
		}
		if !errors.Is(err, errControlCRC) {
			break
		}
	}
	return ControlData{}, core.Wrap(err, "postgres.read_control", "the cluster in "+dataDir+" is missing or damaged")
}

func parseControl(raw []byte) (ControlData, error) {
	if len(raw) < offCRC1800+4 {
		return ControlData{}, fmt.Errorf("pg_control: %d bytes: %w", len(raw), errControlCRC)
	}
	le := binary.NativeEndian
	u32 := func(off int) uint32 { return le.Uint32(raw[off:]) }
	u64 := func(off int) uint64 { return le.Uint64(raw[off:]) }

	version := u32(offControlVersion)
	crcAt := offCRC1300
	switch version {
	case 1300, 1700:
	case 1800:
		crcAt = offCRC1800
	default:
		// A torn read can show any bytes here; only a version that stays wrong is reported as unknown.
		return ControlData{}, fmt.Errorf("pg_control: version %d is not one of 1300, 1700, 1800: %w", version, errControlCRC)
	}
	if crc32.Checksum(raw[:crcAt], crc32.MakeTable(crc32.Castagnoli)) != u32(crcAt) {
		return ControlData{}, errControlCRC
	}
	return ControlData{
		SystemID:            u64(offSystemID),
		ControlVersion:      version,
		CatalogVersion:      u32(offCatalogVersion),
		State:               ClusterState(u32(offState)),
		ModifiedAt:          time.Unix(int64(u64(offTime)), 0),
		Checkpoint:          core.LSN(u64(offCheckpoint)),
		Redo:                core.LSN(u64(offRedo)),
		Timeline:            u32(offTimeline),
		PrevTimeline:        u32(offPrevTimeline),
		CheckpointTime:      time.Unix(int64(u64(offCheckpointTime)), 0),
		MinRecoveryPoint:    core.LSN(u64(offMinRecovery)),
		MinRecoveryTimeline: u32(offMinRecoveryTL),
		BackupStart:         core.LSN(u64(offBackupStart)),
		BackupEnd:           core.LSN(u64(offBackupEnd)),
		BackupEndRequired:   raw[offBackupEndRequired] != 0,
		Limits: StandbyLimits{
			Connections: int(u32(offMaxConnections)), Workers: int(u32(offMaxWorkers)), Senders: int(u32(offMaxSenders)),
			Prepared: int(u32(offMaxPrepared)), Locks: int(u32(offMaxLocks)),
		},
		WALSegmentSize:  uint64(u32(offSegmentSize)),
		BlockSize:       u32(offBlockSize),
		ChecksumVersion: u32(offChecksumVersion),
	}, nil
}
