//! The computational graph of a decoder: what writes to the residual stream, what reads it.

use common::lm::{LmConfig, Reader, Writer};
use common::nn::Port;

/// A module that can belong to a circuit and be updated: a head or an MLP. Input and logits are
/// not modules.
pub type Module = usize;

/// Writer → reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Index into [`Network::writers`].
    pub writer: usize,
    /// Index into [`Network::readers`].
    pub reader: usize,
}

/// Writers, readers and all edges of a decoder.
#[derive(Debug, Clone)]
pub struct Network {
    /// In the order of the network; 0 is the input. The modules are the others, in order.
    pub writers: Vec<Writer>,
    /// In the order of the network; the last is the logits.
    pub readers: Vec<Reader>,
    /// Ordered by reader, then writer. A head has three readers, an MLP and the logits one each.
    pub edges: Vec<Edge>,
    layers: usize,
}

impl Network {
    /// The graph of a decoder of this shape. Query heads that share keys and values have their own
    /// readers.
    pub fn new(config: &LmConfig) -> Self {
        let (writers, readers) = (config.writers(), config.readers());
        let mut edges = Vec::new();
        for (reader, &to) in readers.iter().enumerate() {
            for (writer, &from) in writers.iter().enumerate() {
                if from.precedes(to) {
                    edges.push(Edge { writer, reader });
                }
            }
        }
        Self { writers, readers, edges, layers: config.num_hidden_layers }
    }

    /// Number of heads and MLPs.
    pub fn modules(&self) -> usize {
        self.writers.len() - 1
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The module that a writer is; `None` for the input.
    pub fn module_of_writer(&self, writer: usize) -> Option<Module> {
        writer.checked_sub(1)
    }

    /// The module that a reader belongs to; `None` for the logits.
    pub fn module_of_reader(&self, reader: usize) -> Option<Module> {
        let writer = match self.readers[reader] {
            Reader::Head { layer, head, .. } => Writer::Head { layer, head },
            Reader::Mlp { layer } => Writer::Mlp { layer },
            Reader::Logits => return None,
        };
        self.writers.iter().position(|&known| known == writer).and_then(|at| at.checked_sub(1))
    }

    /// `a{layer}.h{head}` or `m{layer}`.
    pub fn module_name(&self, module: Module) -> String {
        writer_name(self.writers[module + 1])
    }

    /// Layer of a module.
    pub fn module_layer(&self, module: Module) -> usize {
        match self.writers[module + 1] {
            Writer::Head { layer, .. } | Writer::Mlp { layer } => layer,
            Writer::Input => 0,
        }
    }

    /// `writer->reader<port>`, the names of EAP-IG.
    pub fn edge_name(&self, edge: Edge) -> String {
        let reader = match self.readers[edge.reader] {
            Reader::Head { layer, head, port } => {
                let port = match port {
                    Port::Query => "q",
                    Port::Key => "k",
                    Port::Value => "v",
                };
                format!("a{layer}.h{head}<{port}>")
            }
            Reader::Mlp { layer } => format!("m{layer}"),
            Reader::Logits => "logits".to_owned(),
        };
        format!("{}->{reader}", writer_name(self.writers[edge.writer]))
    }
}

fn writer_name(writer: Writer) -> String {
    match writer {
        Writer::Input => "input".to_owned(),
        Writer::Head { layer, head } => format!("a{layer}.h{head}"),
        Writer::Mlp { layer } => format!("m{layer}"),
    }
}
